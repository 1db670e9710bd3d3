"""Runs a decoder of integer linears by the compiled kernels: a whole layer is one call.

In: `Piece`s. Out: logits. Python's share of a step is small and the same whatever the model: one call a layer. Keys and
values are bfloat16, in pages. Letters: T new tokens of all pieces, D width of a head, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from chuan.inference.pages import PAGE
from chuan.inference.runner import CHUNK, Piece, lay_out
from chuan.model.config import ModelConfig
from chuan.model.decoder import Decoder
from chuan.quantization.integer import IntegerLinear
from chuan.quantization.kernels.bindings import (
    BatchStruct,
    LayerStruct,
    LinearStruct,
    NativeKernels,
    SequenceStruct,
    ShapeStruct,
)

_LARGEST_HEAD = 256
_STEPS_OF_PACKING = 8  # fewer keep each token waiting longer, more read weights slowly for longer


class NativeRunner:
    """A `Runner`. What a sequence gets does not depend on its company, bit for bit: every row is computed alone.

    Layers whose weights wait to be packed run as they are, at about half the speed; the first step leaves them so, for
    an answer to begin early, and the next few pack them.
    """

    chunk = CHUNK

    def __init__(self, decoder: Decoder, kernels: NativeKernels, page_count: int) -> None:
        config = decoder.config
        self.config: ModelConfig = config
        self.page_count = page_count
        self._decoder = decoder
        self._kernels = kernels
        self._shape = ShapeStruct(
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.rms_norm_eps,
        )
        norms = ("input_layernorm.weight", "post_attention_layernorm.weight")
        self._waiting = [index for index, layer in enumerate(decoder.model.layers) if _list_waiting(layer)]
        self._begun = False
        self._norms = [[layer.get_parameter(name).detach().float() for name in norms] for layer in decoder.model.layers]
        self._held: dict[int, list[Tensor | None]] = {}  # what the structures point to
        self._layers = [self._describe_layer(index) for index in range(config.num_hidden_layers)]
        self._norm = decoder.model.norm.weight.detach().float()
        assert isinstance(decoder.lm_head, IntegerLinear)
        self._head: LinearStruct = decoder.lm_head.describe()
        shape = (config.num_hidden_layers, page_count, config.num_key_value_heads * PAGE * config.head_dim)
        # numpy's zeros take memory only where they are written.
        self._keys: np.ndarray = np.zeros(shape, np.uint16)
        self._values: np.ndarray = np.zeros(shape, np.uint16)
        self._space: Tensor = torch.empty(0, dtype=torch.uint8)
        self._angles: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def takes(decoder: Decoder) -> bool:
        """Whether the kernels can run it: all linears integer, and heads of a width that fills vectors."""
        size = decoder.config.head_dim
        layers = [*decoder.model.layers, decoder.lm_head]
        linears = [m for layer in layers for m in layer.modules() if isinstance(m, nn.Linear | IntegerLinear)]
        alike = {(m.bits, m.group) if isinstance(m, IntegerLinear) else None for m in linears[:-1]}
        whole = isinstance(decoder.lm_head, IntegerLinear) and len(alike) == 1 and None not in alike
        return whole and len(linears) == 7 * len(decoder.model.layers) + 1 and size % 16 == 0 and size <= _LARGEST_HEAD

    def finish_loading(self) -> None:
        while self._waiting:
            self._pack_next()

    def _pack_next(self) -> None:
        index = self._waiting[0]
        for linear in _list_waiting(self._decoder.model.layers[index]):
            linear.pack(self._kernels)
        self._layers[index] = self._describe_layer(index)
        self._waiting.pop(0)

    @torch.inference_mode()
    def run(self, pieces: Sequence[Piece]) -> Tensor:
        if self.config.has_dynamic_rope and len(pieces) > 1:  # each alone
            return torch.cat([self.run([piece]) for piece in pieces])
        if self._begun:
            for _ in range(min(len(self._waiting), -(-len(self._layers) // _STEPS_OF_PACKING))):
                self._pack_next()
        self._begun = True
        token_ids, positions, kept = lay_out(pieces)
        pages: list[int] = []
        first = 0
        sequences = (SequenceStruct * len(pieces))()
        for sequence, piece in zip(sequences, pieces, strict=True):
            sequence.first, sequence.rows, sequence.past = first, len(piece.token_ids), piece.past
            sequence.unused = len(pages)  # where its pages begin, until they have an address
            pages += piece.pages
            first += sequence.rows
        table = np.array(pages, np.int32)
        for sequence in sequences:
            sequence.pages = table.ctypes.data + 4 * sequence.unused
        x = self._decoder.model.embed_tokens.weight[torch.tensor(token_ids)].float()
        self._run_layers(x, sequences, torch.tensor(positions))
        if not kept:
            return torch.empty(0, self.config.vocab_size)
        rows = x if len(kept) == len(x) else x[torch.tensor(kept)]
        return self._kernels.linear(self._head, rows, self._norm, self.config.rms_norm_eps)

    def copy_page(self, source: int, target: int) -> None:
        for pool in (self._keys, self._values):
            pool[:, target] = pool[:, source]

    def _run_layers(self, x: Tensor, sequences: ctypes.Array[SequenceStruct], positions: Tensor) -> None:
        """x (T, hidden), in place."""
        cos, sin = self._find_angles(positions)
        batch = BatchStruct(len(x), len(sequences), sequences, cos.data_ptr(), sin.data_ptr())
        needed = self._kernels.struct.layer_space(self._shape, len(x))
        if len(self._space) < needed:
            self._space = torch.empty(needed, dtype=torch.uint8)
        run, address, space = self._kernels.struct.layer, x.data_ptr(), self._space.data_ptr()
        keys, values, step = self._keys.ctypes.data, self._values.ctypes.data, self._keys[0].nbytes
        for index, layer in enumerate(self._layers):
            batch.keys, batch.values = keys + index * step, values + index * step
            run(self._shape, layer, batch, address, space)

    def _describe_layer(self, index: int) -> LayerStruct:
        layer, norms = self._decoder.model.layers[index], self._norms[index]
        names = {
            "q": "self_attn.q_proj",
            "k": "self_attn.k_proj",
            "v": "self_attn.v_proj",
            "o": "self_attn.o_proj",
            "gate": "mlp.gate_proj",
            "up": "mlp.up_proj",
            "down": "mlp.down_proj",
        }
        struct, held = LayerStruct(), []
        for field, name in names.items():
            linear = layer.get_submodule(name)
            assert isinstance(linear, IntegerLinear)
            setattr(struct, field, linear.describe())
            held += linear.list_held()
        self._held[index] = held
        struct.input_norm, struct.post_norm = norms[0].data_ptr(), norms[1].data_ptr()
        return struct

    def _find_angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (T, D / 2) of positions (T,)."""
        rope, half = self._decoder.rope, self.config.head_dim // 2
        if self.config.has_dynamic_rope:
            cos, sin = rope.cos_sin(positions[None])
            return cos[0, 0, :, :half].contiguous(), sin[0, 0, :, :half].contiguous()
        if self._angles is None:
            cos, sin = rope.cos_sin(torch.arange(self.config.context_length)[None])
            self._angles = cos[0, 0, :, :half].contiguous(), sin[0, 0, :, :half].contiguous()
        return self._angles[0][positions], self._angles[1][positions]


def _list_waiting(layer: nn.Module) -> list[IntegerLinear]:
    """The linears of a layer that are not packed yet."""
    return [linear for linear in layer.modules() if isinstance(linear, IntegerLinear) and linear.rows is not None]
