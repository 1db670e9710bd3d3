"""What a step is computed from: rows of packed documents, and those of token shards.

In: a finished folder of shards. Out: rows by number. Knows no ranks and no model. Letters: B rows, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from chuan.corpus.shards import ShardReader
from chuan.errors import ChuanError
from chuan.training.order import locate

IGNORED = -100  # a target that is not learned, as torch's cross-entropy has it


@dataclass(frozen=True)
class Row:
    """One row. `targets[t]` is what position t is to predict, or IGNORED. `documents[t]` numbers the document that t
    belongs to; attention does not cross from one to the next. All (T,) int32."""

    tokens: np.ndarray
    targets: np.ndarray
    documents: np.ndarray


@dataclass(frozen=True)
class Batch:
    """Several rows, each field (B, T)."""

    tokens: np.ndarray
    targets: np.ndarray
    documents: np.ndarray

    @classmethod
    def stack(cls, rows: Sequence[Row]) -> Batch:
        return cls(
            *(np.stack([getattr(row, name) for row in rows]) for name in ("tokens", "targets", "documents")),
        )

    @property
    def target_count(self) -> int:
        """How many positions are learned from."""
        return int((self.targets != IGNORED).sum())

    def split(self, rows: int) -> list[Batch]:
        """The same in parts of at most so many rows."""
        starts = range(0, len(self.tokens), rows)
        return [
            Batch(*(field[start : start + rows] for field in (self.tokens, self.targets, self.documents)))
            for start in starts
        ]


class Rows(Protocol):
    """A source of rows. `length` is T."""

    length: int

    def __len__(self) -> int:
        """The rows of one pass over the data."""
        ...

    def row(self, number: int) -> Row:
        """The row of that number since training began: a pure function of it, so that a resumed run goes on exactly."""
        ...


class ShardRows:
    """Windows of a split's stream of tokens, shuffled; each pass in another order."""

    def __init__(self, reader: ShardReader, length: int, seed: int, shuffle: bool = True) -> None:
        """Raises ChuanError where the split is shorter than one row."""
        self.length = length
        self._reader, self._seed, self._shuffle = reader, seed, shuffle
        self._count = (reader.token_count - 1) // length
        if self._count < 1:
            raise ChuanError(
                f"{reader.folder} has {reader.token_count:,} tokens in its split {reader.split!r}, less than one row "
                f"of {length}; build a larger corpus or set a smaller data.length"
            )

    def __len__(self) -> int:
        return self._count

    def row(self, number: int) -> Row:
        place = locate(number, self._count, self._seed)[1] if self._shuffle else number % self._count
        # One more than T: the last position predicts it. What begins there belongs to the next row.
        window = self._reader.window(place * self.length, self.length + 1)
        ids = window.tokens.astype(np.int32)
        begins = np.zeros(self.length + 1, np.int32)
        begins[window.starts] = 1
        targets = ids[1:].copy()
        targets[begins[1:] == 1] = IGNORED  # a document's end says nothing about the next document
        return Row(ids[:-1], targets, np.cumsum(begins[:-1], dtype=np.int32))


def take_batch(rows: Rows, first: int, count: int) -> Batch:
    """`count` rows from number `first` on."""
    return Batch.stack([rows.row(number) for number in range(first, first + count)])
