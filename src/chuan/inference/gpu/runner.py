"""Runs a decoder on a GPU: passes of few rows as captured graphs of few kernels, all others as the plain decoder does.

In: `Piece`s. Out: logits. A step that answers launches some hundred kernels, each of which takes less time than Python
needs to launch it: a captured graph launches them all at once. Letters: M rows, P pages of the longest sequence.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chuan.inference.gpu.attention import attend_pages, normalise, rotate_and_store
from chuan.inference.gpu.chain import on_device
from chuan.inference.gpu.linears import (
    MOST_ROWS,
    WideInt4Linear,
    count_planes,
    multiply,
    multiply_gated,
    multiply_in_parts,
)
from chuan.inference.pages import PAGE, count_pages
from chuan.inference.runner import Piece, TorchRunner, lay_out
from chuan.model.decoder import Decoder, DecoderLayer
from chuan.model.paged_cache import PagedCache
from chuan.quantization.int4 import Int4Linear
from chuan.quantization.int8 import Int8Linear

# A sequence is read by one more program for each so many pages, up to a limit.
_SPLIT_PAGES, _MOST_SPLITS = 2, 32
# What a row of a batch brings along, in columns: how many tokens it attends to is its length. Then come its pages.
_ID, _POSITION, _SLOT, _LENGTH, _PAGES = range(5)

_Linear = nn.Linear | Int8Linear | Int4Linear


class GpuRunner(TorchRunner):
    """A `Runner`. Logits depend on the company of a sequence within rounding only.

    Of each layer it joins q, k and v, and gate and up; the decoder's own layers become views of what is joined.
    """

    chunk = 1024  # below, launching the plain decoder's kernels takes longer than they do

    def __init__(self, decoder: Decoder, page_count: int) -> None:
        super().__init__(decoder, page_count)
        self._layers = [_Layer(cast(DecoderLayer, layer)) for layer in decoder.model.layers]
        weight = decoder.model.embed_tokens.weight
        # The last page takes what rows that fill up a batch write.
        self._cache = PagedCache(self.config, page_count + 1, PAGE, weight.dtype, weight.device)
        self._graphs: dict[tuple[int, int], Callable[[Tensor], Tensor]] = {}
        # One graph runs at a time, so that all can use the same memory.
        self._capture: dict[str, Any] = {}

    @staticmethod
    def takes(decoder: Decoder) -> bool:
        """Whether the kernels know all linears of the layers, and the angles do not depend on who is in the batch.

        Weights that are trained stay where their optimizer knows them.
        """
        if decoder.config.has_dynamic_rope or any(parameter.requires_grad for parameter in decoder.parameters()):
            return False
        return all(_Layer.takes(layer) for layer in decoder.model.layers)

    def run(self, pieces: Sequence[Piece]) -> Tensor:
        rows = sum(len(piece.token_ids) for piece in pieces)
        return self._run_few(pieces) if rows <= MOST_ROWS else super().run(pieces)

    @torch.inference_mode()
    def _run_few(self, pieces: Sequence[Piece]) -> Tensor:
        token_ids, positions, kept = lay_out(pieces)
        pages = count_pages(max(positions) + 1)
        rows, filled = _round_up(len(token_ids)), slice(len(token_ids))
        splits = min(_MOST_SPLITS, _round_up(-(-pages // _SPLIT_PAGES)))
        batch = self._build_batch(rows)
        batch[filled, _ID], batch[filled, _POSITION] = token_ids, positions
        batch[filled, _SLOT] = [slot for piece in pieces for slot in piece.span.list_slots(PAGE)]
        batch[filled, _LENGTH] = batch[filled, _POSITION] + 1
        row = 0
        for piece in pieces:
            end = row + len(piece.token_ids)
            batch[row:end, _PAGES : _PAGES + len(piece.pages)] = piece.pages
            row = end
        run = self._graphs.get((rows, splits))
        if run is None:
            run = self._graphs[rows, splits] = self._prepare(rows, splits)
        logits = run(torch.from_numpy(batch))
        return logits[kept].float().cpu() if len(kept) < rows else logits.float().cpu()

    def _build_batch(self, rows: int) -> np.ndarray:
        """Rows that fill up: they attend to nothing."""
        batch = np.zeros((rows, _PAGES + count_pages(self.config.context_length)), np.int32)
        batch[:, _SLOT] = self.page_count * PAGE
        return batch

    def _prepare(self, rows: int, splits: int) -> Callable[[Tensor], Tensor]:
        """A pass of so many rows, captured."""
        device = self._decoder.model.embed_tokens.weight.device
        batch = torch.from_numpy(self._build_batch(rows)).to(device)
        compute = functools.partial(self._compute, batch, splits)
        graph = torch.cuda.CUDAGraph()
        with on_device(device):
            compute()  # what is compiled at first use must not be captured
            if not self._capture:
                self._capture = {"pool": torch.cuda.graph_pool_handle(), "stream": torch.cuda.Stream(device)}
            # Other threads may go on with models of their own meanwhile.
            with torch.cuda.graph(graph, **self._capture, capture_error_mode="thread_local"):
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
        x: Tensor = decoder.model.embed_tokens(batch[:, _ID])
        cos, sin = (table[0, 0] for table in decoder.rope.cos_sin(batch[None, :, _POSITION]))
        slots, lengths, pages = batch[:, _SLOT], batch[:, _LENGTH], batch[:, _PAGES:]
        parts: Tensor | None = None  # of what is to be added to x
        for layer, keys, values in zip(self._layers, cache.keys, cache.values, strict=True):
            x, hidden = normalise(x, parts, layer.input_norm.weight, layer.input_norm.eps, layer.qkv.planes)
            queries = rotate_and_store(
                layer.qkv.run(hidden), cos, sin, slots, keys, values, self.config.num_attention_heads
            )
            seen = attend_pages(queries, keys, values, lengths, pages, PAGE, splits, layer.o.planes)
            parts = layer.o.run_in_parts(seen)
            x, hidden = normalise(x, parts, layer.post_norm.weight, layer.post_norm.eps, layer.gate_up.planes)
            parts = layer.down.run_in_parts(layer.gate_up.run_gated(hidden))
        _, hidden = normalise(x, parts, decoder.model.norm.weight, decoder.model.norm.eps, 1)
        logits: Tensor = decoder.lm_head(hidden)
        return logits


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
        kinds = {Int4Linear if type(linear) is WideInt4Linear else type(linear) for linear in found}
        groups = {linear.group_size for linear in found if isinstance(linear, Int4Linear)}
        known = len(kinds) == 1 and kinds <= {nn.Linear, Int8Linear, Int4Linear} and len(groups) <= 1
        return known and all(_is_whole(linear) for linear in found)


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

    def run(self, x: Tensor) -> Tensor:
        """(M, K) -> (M, N)."""
        if isinstance(self.linear, nn.Linear):
            return F.linear(x, self.linear.weight, self.linear.bias)
        return multiply(x, self.linear)

    def run_gated(self, x: Tensor) -> Tensor:
        """(M, K) -> (M, N / 2): silu of the first half of the outputs times the other."""
        if isinstance(self.linear, nn.Linear):
            gate, up = self.run(x).chunk(2, dim=-1)
            return F.silu(gate) * up
        return multiply_gated(x, self.linear)

    def run_in_parts(self, x: Tensor) -> Tensor:
        """(M, K) -> (S, M, N), still to be summed."""
        return self.run(x)[None] if isinstance(self.linear, nn.Linear) else multiply_in_parts(x, self.linear)


def _is_whole(linear: nn.Module) -> bool:
    """Whether words hold whole inputs, and groups whole words."""
    if isinstance(linear, Int4Linear):
        return linear.group_size in (32, 64, 128) and linear.in_features % linear.group_size == 0
    return not isinstance(linear, Int8Linear) or linear.in_features % 4 == 0


def _join(parts: list[_Linear]) -> _Linear:
    if len(parts) == 1:
        return parts[0]
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
