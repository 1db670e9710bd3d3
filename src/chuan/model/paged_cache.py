"""Keys and values in pages that several sequences share, for a ragged batch laid end to end.

In: a layer's queries, keys and values of all new tokens. Out: what attention makes of them, each sequence by itself.
Knows page numbers, not whose they are. Letters: H query heads, K key/value heads, T new tokens, D width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chuan.model.attention import attend
from chuan.model.config import ModelConfig


@dataclass(frozen=True)
class Span:
    """One sequence of a batch: `tokens` new ones after `past` in the cache, all on `pages`, in order."""

    past: int
    tokens: int
    pages: Sequence[int]


class PagedCache:
    """`page_count` pages of `page_size` tokens for every layer. `begin` says what the next pass of the decoder is."""

    def __init__(
        self, config: ModelConfig, page_count: int, page_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.length = 0  # each sequence has its own; positions are given
        self._page_size = page_size
        # Token-major: a contiguous run of pages is a view, and memory is taken page by page as they fill.
        shape = (page_count * page_size, config.num_key_value_heads, config.head_dim)
        self._keys = [build_zeros(shape, dtype, device) for _ in range(config.num_hidden_layers)]
        self._values = [build_zeros(shape, dtype, device) for _ in range(config.num_hidden_layers)]
        self._slots = torch.empty(0, dtype=torch.long, device=device)
        self._reads: list[tuple[int, int, slice | Tensor]] = []

    def begin(self, spans: Sequence[Span]) -> None:
        """Sets the sequences whose new tokens come next, in the order in which they are laid end to end."""
        size, device = self._page_size, self._slots.device
        slots: list[int] = []
        self._reads, row = [], 0
        for span in spans:
            end, pages = span.past + span.tokens, span.pages
            slots += [pages[i // size] * size + i % size for i in range(span.past, end)]
            used = -(-end // size)
            first = pages[0] * size
            if all(pages[i] == pages[0] + i for i in range(1, used)):
                self._reads.append((row, span.tokens, slice(first, first + end)))
            else:
                starts = torch.tensor(pages[:used], device=device) * size
                places = (starts[:, None] + torch.arange(size, device=device)).flatten()[:end]
                self._reads.append((row, span.tokens, places))
            row += span.tokens
        self._slots = torch.tensor(slots, device=device)

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """(1, H, T, D) by (1, K, T, D) -> (1, H, T, D): stores keys and values; each sequence attends to its own."""
        assert mask is None, "a ragged batch has no padding"
        all_keys, all_values = self._keys[layer], self._values[layer]
        all_keys.index_copy_(0, self._slots, keys[0].transpose(0, 1))
        all_values.index_copy_(0, self._slots, values[0].transpose(0, 1))
        outs = [
            attend(
                queries[:, :, row : row + tokens],
                all_keys[places].transpose(0, 1)[None],
                all_values[places].transpose(0, 1)[None],
                None,
            )
            for row, tokens, places in self._reads
        ]
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)

    def copy_page(self, source: int, target: int) -> None:
        """Copies one page's keys and values to another's place, in every layer."""
        size = self._page_size
        for tensor in (*self._keys, *self._values):
            tensor[target * size : (target + 1) * size] = tensor[source * size : (source + 1) * size]

    def advance(self, tokens: int) -> None:
        """Nothing to do: how long each sequence is, `begin` says."""


def build_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU they take memory only where they are written: torch writes its own at once, numpy uses calloc."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    memory = torch.from_numpy(np.zeros(size + 64, dtype=np.uint8))
    start = -memory.data_ptr() % 64  # as aligned as torch's own
    return memory[start : start + size].view(dtype).view(shape)
