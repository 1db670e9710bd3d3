"""Attention over rows that hold several documents, in plain operations for a compiler to fuse.

In: queries, keys, values, and the number of the document that each token belongs to. Out: what each token sees of its
own document up to itself. Queries are taken a block at a time, so that what no query of a block can see is not
computed, and the way back computes the scores again, so that nothing of the size T x T is kept (Dao et al. 2022,
https://arxiv.org/abs/2205.14135, algorithms 1 and 4 without their tiles). Compiled, in bfloat16 and over short
rows, it takes half the time of torch's fused attention on a CPU; as it stands, twice that time (docs/log.md).
Letters: B rows, H heads, T tokens of a row, D width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_BLOCKS = 4  # of a row: a fifth of the scores is computed in vain, and a compiler has little to read


def attend_blocks(queries: Tensor, keys: Tensor, values: Tensor, documents: Tensor) -> Tensor:
    """(B, H, T, D) each, keys and values of a divisor of H heads; documents (B, T) -> (B, H, T, D)."""
    groups = queries.shape[1] // keys.shape[1]
    if groups > 1:
        keys, values = (tensor.repeat_interleave(groups, dim=1) for tensor in (keys, values))
    return _BlockAttention.apply(queries, keys, values, documents)


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, documents: Tensor) -> Tensor:
        outputs, masses = [], []
        for first, end in _list_blocks(queries):
            scores = _score(queries, keys, documents, first, end)
            largest = scores.amax(dim=-1, keepdim=True)
            weights = (scores - largest).exp()
            mass = weights.sum(dim=-1, keepdim=True)
            outputs.append((weights / mass).to(values.dtype) @ values[:, :, :end])
            masses.append(largest + mass.log())
        output, log_mass = torch.cat(outputs, dim=2), torch.cat(masses, dim=2)
        ctx.save_for_backward(queries, keys, values, documents, output, log_mass)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, documents, output, log_mass = ctx.saved_tensors
        along = (grad.float() * output.float()).sum(dim=-1, keepdim=True)
        grad_queries = []
        grad_keys, grad_values = (torch.zeros_like(tensor, dtype=torch.float32) for tensor in (keys, values))
        for first, end in _list_blocks(queries):
            weights = (_score(queries, keys, documents, first, end) - log_mass[:, :, first:end]).exp()
            own = grad[:, :, first:end]
            grad_weights = (own @ values[:, :, :end].mT).float()
            grad_scores = weights * (grad_weights - along[:, :, first:end]) * queries.shape[-1] ** -0.5
            grad_scores = grad_scores.to(queries.dtype)
            grad_queries.append(grad_scores @ keys[:, :, :end])
            grad_keys[:, :, :end] += grad_scores.mT @ queries[:, :, first:end]
            grad_values[:, :, :end] += weights.to(values.dtype).mT @ own
        return torch.cat(grad_queries, dim=2), grad_keys.to(keys.dtype), grad_values.to(values.dtype), None


def _list_blocks(queries: Tensor) -> Iterator[tuple[int, int]]:
    """Where each block of queries begins and ends."""
    tokens = queries.shape[2]
    size = -(-tokens // _BLOCKS)
    return ((first, min(first + size, tokens)) for first in range(0, tokens, size))


def _score(queries: Tensor, keys: Tensor, documents: Tensor, first: int, end: int) -> Tensor:
    """Queries `first` to `end` by the keys before `end` -> (B, H, end - first, end) in float32."""
    scores = (queries[:, :, first:end] @ keys[:, :, :end].mT).float() * queries.shape[-1] ** -0.5
    at = torch.arange(end, device=queries.device)
    seen = (at[first:, None] >= at) & (documents[:, first:end, None] == documents[:, None, :end])
    return scores.masked_fill(~seen[:, None], -torch.inf)
