"""Runs a decoder on a GPU: passes of few rows as captured graphs of few kernels, all others as the plain decoder does.

In: `Piece`s. Out: logits. A step that answers launches some hundred kernels, each of which takes less time than Python
needs to launch it: a captured graph launches them all at once. Letters: M rows, P pages of the longest sequence.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chuan.inference.gpu.attention import attend_pages, normalise, rotate_and_store
from chuan.inference.gpu.linears import MOST_ROWS, WideInt4Linear, count_planes, multiply
from chuan.inference.pages import PAGE, count_pages
from chuan.inference.runner import Piece, TorchRunner, lay_out
from chuan.model.decoder import Decoder, DecoderLayer
from chuan.model.paged_cache import PagedCache
from chuan.quantization.int4 import Int4Linear
from chuan.quantization.int8 import Int8Linear

# A sequence is read by one more program for each so many pages, up to a limit.
_SPLIT_PAGES, _MOST_SPLITS = 2, 32
# What a row brings along: its id, position, slot, and how many tokens it attends to; then its pages.
_FIELDS = 4

_Linear = nn.Linear | Int8Linear | Int4Linear


class GpuRunner(TorchRunner):
    """A `Runner`. Logits depend on the company of a sequence within rounding only.

    Of each layer it joins q, k and v, and gate and up; the decoder's own layers become views of what is joined.
    """

    chunk = 2048  # below, launching the plain decoder's kernels takes longer than they do

    def __init__(self, decoder: Decoder, page_count: int) -> None:
        super().__init__(decoder, page_count)
        self._layers = [_Layer(cast(DecoderLayer, layer)) for layer in decoder.model.layers]
        weight = decoder.model.embed_tokens.weight
        # The last page takes what rows that fill up a batch write.
        self._cache = PagedCache(self.config, page_count + 1, PAGE, weight.dtype, weight.device)
        self._batches: dict[tuple[int, int], Callable[[Tensor], Tensor]] = {}

    @staticmethod
    def takes(decoder: Decoder) -> bool:
        """Whether the kernels know all linears of the layers, and the angles do not depend on who is in the batch."""
        scaling = decoder.config.rope_scaling
        return all(_Layer.takes(layer) for layer in decoder.model.layers) and (
            scaling is None or scaling.rope_type != "dynamic"
        )

    def run(self, pieces: Sequence[Piece]) -> Tensor:
        rows = sum(len(piece.token_ids) for piece in pieces)
        return self._run_few(pieces) if rows <= MOST_ROWS else super().run(pieces)

    @torch.inference_mode()
    def _run_few(self, pieces: Sequence[Piece]) -> Tensor:
        token_ids, _, kept = lay_out(pieces)
        pages = max(count_pages(piece.past + len(piece.token_ids)) for piece in pieces)
        rows = _round_up(len(token_ids))
        splits = min(_MOST_SPLITS, _round_up(-(-pages // _SPLIT_PAGES)))
        batch = np.zeros((rows, _FIELDS + count_pages(self.config.context_length)), np.int32)
        batch[:, 2] = self.page_count * PAGE
        row = 0
        for piece in pieces:
            for position in range(piece.past, piece.past + len(piece.token_ids)):
                slot = piece.pages[position // PAGE] * PAGE + position % PAGE
                batch[row, :_FIELDS] = token_ids[row], position, slot, position + 1
                batch[row, _FIELDS : _FIELDS + len(piece.pages)] = piece.pages
                row += 1
        run = self._batches.get((rows, splits))
        if run is None:
            run = self._batches[rows, splits] = self._prepare(rows, splits, batch.shape[1])
        logits = run(torch.from_numpy(batch))
        return logits[kept].float().cpu() if len(kept) < rows else logits.float().cpu()

    def _prepare(self, rows: int, splits: int, columns: int) -> Callable[[Tensor], Tensor]:
        """A pass of so many rows, captured."""
        batch = torch.zeros(rows, columns, dtype=torch.int32, device=self._decoder.lm_head.weight.device)
        batch[:, 2] = self.page_count * PAGE
        compute = functools.partial(self._compute, batch, splits)
        compute()  # what is compiled at first use must not be captured
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = compute()

        def run(given: Tensor) -> Tensor:
            batch.copy_(given)
            graph.replay()
            return logits

        return run

    def _compute(self, batch: Tensor, splits: int) -> Tensor:
        """(M, 4 + P) ids, positions, slots, lengths, pages -> (M, V) logits of every row."""
        decoder, cache = self._decoder, self._cache
        assert cache is not None
        x = decoder.model.embed_tokens.weight[batch[:, 0]]
        cos, sin = (table[0, 0] for table in decoder.rope.cos_sin(batch[None, :, 1]))
        slots, lengths, pages = batch[:, 2], batch[:, 3], batch[:, _FIELDS:]
        parts: Tensor | None = None  # what is to be added to x
        for layer, keys, values in zip(self._layers, cache.keys, cache.values, strict=True):
            x, hidden = normalise(x, parts, layer.input_norm.weight, layer.input_norm.eps, layer.qkv.planes)
            queries = rotate_and_store(
                layer.qkv(hidden), cos, sin, slots, keys, values, self.config.num_attention_heads
            )
            parts = layer.o(
                attend_pages(queries, keys, values, lengths, pages, PAGE, splits, layer.o.planes), parts=True
            )
            x, hidden = normalise(x, parts, layer.post_norm.weight, layer.post_norm.eps, layer.gate_up.planes)
            parts = layer.down(layer.gate_up(hidden, gated=True), parts=True)
        _, hidden = normalise(x, parts, decoder.model.norm.weight, decoder.model.norm.eps, 1)
        return F.linear(hidden, decoder.lm_head.weight)


class _Layer:
    """A decoder's layer with its linears joined; the layer itself keeps views of them."""

    def __init__(self, layer: DecoderLayer) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.input_norm, self.post_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = _Joined(attention, "q_proj", "k_proj", "v_proj")
        self.o = _Joined(attention, "o_proj")
        self.gate_up = _Joined(mlp, "gate_proj", "up_proj")
        self.down = _Joined(mlp, "down_proj")

    @staticmethod
    def takes(layer: nn.Module) -> bool:
        """Whether all linears are of one kind that the kernels know."""
        found = [module for name, module in layer.named_modules() if name.endswith("_proj")]
        alike = any(all(type(linear) is kind for linear in found) for kind in (nn.Linear, Int8Linear, Int4Linear))
        return alike and all(_is_whole(linear) for linear in found)


class _Joined:
    """Linears of the same inputs as one. `planes` says how the columns of what it is given must lie."""

    def __init__(self, parent: nn.Module, *names: str) -> None:
        parts = cast("list[_Linear]", [parent.get_submodule(name) for name in names])
        self.linear = _join(parts)
        self.planes = count_planes(self.linear)
        first = 0
        for name, part in zip(names, parts, strict=True):
            last = first + part.out_features
            parent.set_submodule(name, _view(self.linear, slice(first, last), part.bias))
            first = last

    def __call__(self, x: Tensor, gated: bool = False, parts: bool = False) -> Tensor:
        """As `multiply`."""
        if not isinstance(self.linear, nn.Linear):
            return multiply(x, self.linear, gated, parts)
        y: Tensor = self.linear(x)
        if gated:
            gate, up = y.chunk(2, dim=-1)
            y = F.silu(gate) * up
        return y[None] if parts else y


def _is_whole(linear: nn.Module) -> bool:
    """Whether words hold whole inputs, and groups whole words."""
    if isinstance(linear, Int4Linear):
        return linear.group_size in (32, 64, 128) and linear.in_features % linear.group_size == 0
    return not isinstance(linear, Int8Linear) or linear.in_features % 4 == 0


def _join(parts: list[_Linear]) -> _Linear:
    biases = [part.bias.detach() for part in parts if part.bias is not None]
    bias = torch.cat(biases) if biases else None
    if isinstance(parts[0], nn.Linear):
        return _build_linear(torch.cat([part.weight.detach() for part in cast("list[nn.Linear]", parts)]), bias)
    joined = type(parts[0]).join_rows(parts)  # type: ignore[arg-type]
    joined.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return joined


def _view(linear: _Linear, rows: slice, bias: Tensor | None) -> _Linear:
    """Some rows of what is joined, in the same memory."""
    if isinstance(linear, nn.Linear):
        return _build_linear(linear.weight.detach()[rows], bias)
    if isinstance(linear, Int8Linear):
        return Int8Linear(linear.weight[rows], linear.weight_scale[rows], bias)
    return WideInt4Linear(linear.weight_packed[rows], linear.weight_scale[rows], linear.in_features, bias)


def _build_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(1, 1, bias=bias is not None, device="meta")
    linear.out_features, linear.in_features = weight.shape
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear


def _round_up(number: int) -> int:
    """To a power of two, so that few shapes are captured."""
    return 1 << (number - 1).bit_length()
