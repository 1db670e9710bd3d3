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

from chuan.model.attention import attend, attend_weighed, join_parts
from chuan.model.config import ModelConfig
from chuan.sequences import count_common


@dataclass(frozen=True)
class Span:
    """One sequence of a batch: `tokens` new ones after `past` in the cache, all on `pages`, in order."""

    past: int
    tokens: int
    pages: Sequence[int]

    def list_slots(self, page_size: int) -> list[int]:
        """Where in the cache the new ones go."""
        places = range(self.past, self.past + self.tokens)
        return [self.pages[place // page_size] * page_size + place % page_size for place in places]


@dataclass(frozen=True)
class _Read:
    """New tokens of one sequence, and where the keys that they look at are: all, or those after what a group shares.

    mask: added to the scores of the last (T, S) of them; None for those that are read whole.
    """

    row: int
    tokens: int
    places: slice | Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class _Group:
    """Sequences next to each other whose first pages are the same ones, which none of their new tokens is on."""

    rows: slice
    places: slice | Tensor
    members: list[_Read]


class PagedCache:
    """`page_count` pages of `page_size` tokens for every layer. `begin` says what the next pass of the decoder is.

    What several sequences share is read once for all of them, where the device has a kernel that tells how much weight
    it gave to each part (a CPU): the questions behind one set of demonstrations, the turns behind one system prompt.
    `keys` and `values` are a layer's, each (page_count * page_size, K, D).
    """

    def __init__(
        self, config: ModelConfig, page_count: int, page_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.length = 0  # each sequence has its own; positions are given
        self._page_size = page_size
        # Token-major: a contiguous run of pages is a view, and memory is taken page by page as they fill.
        shape = (page_count * page_size, config.num_key_value_heads, config.head_dim)
        self.keys = [build_zeros(shape, dtype, device) for _ in range(config.num_hidden_layers)]
        self.values = [build_zeros(shape, dtype, device) for _ in range(config.num_hidden_layers)]
        self._slots = torch.empty(0, dtype=torch.long, device=device)
        self._groups: list[_Group | _Read] = []

    def begin(self, spans: Sequence[Span]) -> None:
        """Sets the sequences whose new tokens come next, in the order in which they are laid end to end."""
        size, device = self._page_size, self._slots.device
        slots: list[int] = []
        for span in spans:
            slots += span.list_slots(size)
        self._slots = torch.tensor(slots, device=device)
        self._groups, row, index = [], 0, 0
        while index < len(spans):
            count, shared = self._find_group(spans[index:]) if device.type == "cpu" else (1, 0)
            members = []
            first = row
            for span in spans[index : index + count]:
                members.append(self._build_read(span, row, shared))
                row += span.tokens
            if count == 1:
                self._groups += members
            else:
                places = self._find_places(spans[index].pages, shared * size)
                self._groups.append(_Group(slice(first, row), places, members))
            index += count

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """(1, H, T, D) by (1, K, T, D) -> (1, H, T, D): stores keys and values; each sequence attends to its own."""
        assert mask is None, "a ragged batch has no padding"
        all_keys, all_values = self.keys[layer], self.values[layer]
        all_keys.index_copy_(0, self._slots, keys[0].transpose(0, 1))
        all_values.index_copy_(0, self._slots, values[0].transpose(0, 1))

        def read(places: slice | Tensor) -> tuple[Tensor, Tensor]:
            return all_keys[places].transpose(0, 1)[None], all_values[places].transpose(0, 1)[None]

        outs = []
        for group in self._groups:
            if isinstance(group, _Read):
                outs.append(attend(queries[:, :, group.row : group.row + group.tokens], *read(group.places), None))
                continue
            own = [
                attend_weighed(
                    queries[:, :, member.row : member.row + member.tokens], *read(member.places), member.mask
                )
                for member in group.members
            ]
            joined = torch.cat([out for out, _ in own], dim=2), torch.cat([log for _, log in own], dim=2)
            outs.append(join_parts(attend_weighed(queries[:, :, group.rows], *read(group.places), None), joined))
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)

    def _find_group(self, spans: Sequence[Span]) -> tuple[int, int]:
        """How many of the first spans belong together, and how many pages they share; (1, 0) for none."""
        count, shared = 1, spans[0].past // self._page_size
        for span in spans[1:]:
            common = count_common(spans[0].pages[:shared], span.pages[: span.past // self._page_size])
            if not common:
                break
            count, shared = count + 1, common
        return (count, shared) if count > 1 else (1, 0)

    def _build_read(self, span: Span, row: int, shared: int) -> _Read:
        length = span.past + span.tokens - shared * self._page_size
        places = self._find_places(span.pages[shared:], length)
        if not shared:
            return _Read(row, span.tokens, places, None)
        hidden = torch.ones(span.tokens, length, dtype=torch.bool).triu(length - span.tokens + 1)
        mask = torch.zeros(span.tokens, length, dtype=self.keys[0].dtype).masked_fill_(hidden, -math.inf)
        return _Read(row, span.tokens, places, mask)

    def _find_places(self, pages: Sequence[int], length: int) -> slice | Tensor:
        """Where the first `length` tokens on some pages are: a view where the pages follow each other."""
        size = self._page_size
        used = -(-length // size)
        if all(pages[i] == pages[0] + i for i in range(1, used)):
            return slice(pages[0] * size, pages[0] * size + length)
        starts = torch.tensor(pages[:used], device=self._slots.device) * size
        return (starts[:, None] + torch.arange(size, device=self._slots.device)).flatten()[:length]

    def copy_page(self, source: int, target: int) -> None:
        """Copies one page's keys and values to another's place, in every layer."""
        size = self._page_size
        for tensor in (*self.keys, *self.values):
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
