"""Attention over rows that hold several documents: none sees its neighbour.

In: the number of the document that each token belongs to. Out: what the decoder asks of a cache, and positions that
count from each document's beginning. Letters: B rows, T tokens of a row, H heads, D width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from chuan.model.attention import attend
from chuan.training.blocks import attend_blocks

# Tokens of a row up to which blocks are faster, documents apart or not (docs/log.md).
_SHORT = 1024


def build_packed_attention(documents: Tensor) -> PackedAttention:
    """(B, T) document numbers -> attention that stays inside of each document, by what the device does fastest."""
    if documents.device.type != "cuda":
        return CpuAttention(documents)
    if bool((documents == documents[:, :1]).all()):
        return PackedAttention()
    return FlexAttention(build_block_mask(documents))


class PackedAttention:
    """Takes the place of a cache in `Decoder.hidden_states`: nothing came before, and nothing is kept. Every row is one
    document."""

    length = 0

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        return attend(queries, keys, values, None)

    def advance(self, tokens: int) -> None:
        pass


class FlexAttention(PackedAttention):
    """FlexAttention, which skips the blocks that a mask empties. It has no backward on a CPU."""

    def __init__(self, blocks: BlockMask) -> None:
        self._blocks = blocks
        self._flex = torch.compile(flex_attention)  # written out in steps it would hold all of T x T

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        grouped = queries.shape[1] != keys.shape[1]
        return self._flex(queries, keys, values, block_mask=self._blocks, enable_gqa=grouped)


class CpuAttention(PackedAttention):
    """Each document by itself, because a mask computes what it hides; compiled short rows in bfloat16 in blocks, which
    are faster all the same.
    """

    def __init__(self, documents: Tensor) -> None:
        self._documents = documents
        self._lengths = [row.unique_consecutive(return_counts=True)[1].tolist() for row in documents]
        self._whole = max(map(len, self._lengths)) == 1  # every row is one document

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        if torch.compiler.is_compiling() and queries.dtype != torch.float32 and queries.shape[2] <= _SHORT:
            return attend_blocks(queries, keys, values, self._documents)
        if self._whole:
            return super().attend(layer, queries, keys, values, mask)
        return self._attend_apart(queries, keys, values)

    @torch.compiler.disable  # lengths differ from step to step, and each set of them would be compiled anew
    def _attend_apart(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        rows = []
        # Unbind and split, not slices: on the way back those join what a slice would add into zeros of the whole.
        for query, key, value, row in zip(queries.unbind(), keys.unbind(), values.unbind(), self._lengths, strict=True):
            parts = zip(*(tensor.unsqueeze(0).split(row, dim=2) for tensor in (query, key, value)), strict=True)
            rows.append(torch.cat([attend(q, k, v, None) for q, k, v in parts], dim=2))
        return torch.cat(rows)


def count_positions(documents: Tensor) -> Tensor:
    """(B, T) document numbers -> (B, T) positions, from 0 in each document."""
    tokens = documents.shape[1]
    index = torch.arange(tokens, device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return index - torch.where(begins, index, 0).cummax(dim=1).values


def build_block_mask(documents: Tensor) -> BlockMask:
    """(B, T) document numbers -> which blocks hold anything to see; meanwhile B x T x T booleans exist."""
    batch, tokens = documents.shape

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (documents[row, query] == documents[row, key])

    return create_block_mask(visible, batch, None, tokens, tokens, device=documents.device)
