"""Attention over rows that hold several documents: none sees its neighbour.

In: the number of the document that each token belongs to. Out: what the decoder asks of a cache, and positions that
count from each document's beginning. Letters: B rows, T tokens of a row, H heads, D width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from chuan.model.attention import attend


class PackedAttention:
    """Takes the place of a cache in `Decoder.hidden_states`: nothing came before, and nothing is kept.

    On a CPU a boolean mask, (B, 1, T, T); on CUDA FlexAttention, which skips the blocks that the mask empties (it has
    no backward on a CPU). Where every row is one document, plain causal attention.
    """

    length = 0

    def __init__(self, documents: Tensor) -> None:
        self.mask: Tensor | None = None
        self.blocks: BlockMask | None = None
        if bool((documents == documents[:, :1]).all()):
            return
        if documents.device.type == "cuda":
            self.blocks = _build_blocks(documents)
            self._flex = torch.compile(flex_attention)  # written out in steps it would hold all of T x T
        else:
            same = documents[:, None, :, None] == documents[:, None, None, :]
            self.mask = same & torch.ones(same.shape[-2:], dtype=torch.bool, device=same.device).tril()

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        if self.blocks is not None:
            grouped = queries.shape[1] != keys.shape[1]
            return self._flex(queries, keys, values, block_mask=self.blocks, enable_gqa=grouped)
        return attend(queries, keys, values, self.mask)

    def advance(self, tokens: int) -> None:
        pass


def count_positions(documents: Tensor) -> Tensor:
    """(B, T) document numbers -> (B, T) positions, from 0 in each document."""
    tokens = documents.shape[1]
    index = torch.arange(tokens, device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return index - torch.where(begins, index, 0).cummax(dim=1).values


def _build_blocks(documents: Tensor) -> BlockMask:
    batch, tokens = documents.shape

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (documents[row, query] == documents[row, key])

    return create_block_mask(visible, batch, None, tokens, tokens, device=documents.device)
