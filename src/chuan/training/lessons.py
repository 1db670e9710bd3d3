"""Conversations as rows to learn from: encoded, cut, split off for validation, and packed.

In: messages and a chat format. Out: `Rows`. Each row holds whole conversations, none of which sees another. Knows no
files and no model. Letters: T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from chuan.chat.formats import ChatFormat
from chuan.chat.messages import Message
from chuan.errors import ChuanError
from chuan.training.order import locate
from chuan.training.rows import IGNORED, Row


@dataclass(frozen=True)
class Encoded:
    """A conversation as ids and what each position is to predict, int32; `cut` tokens did not fit."""

    tokens: np.ndarray
    targets: np.ndarray
    cut: int

    @property
    def target_count(self) -> int:
        return int((self.targets != IGNORED).sum())


def encode(chat_format: ChatFormat, messages: Sequence[Message], length: int) -> Encoded:
    """At most `length` tokens; the end of a longer conversation is cut off."""
    lesson = chat_format.build_lesson(messages)
    tokens = np.array(lesson.ids[:length], np.int32)
    targets = np.array([IGNORED if target is None else target for target in lesson.targets[:length]], np.int32)
    return Encoded(tokens, targets, max(0, len(lesson.ids) - length))


def is_held_out(encoded: Encoded, share: float) -> bool:
    """Whether a conversation is for validation: by its own hash, so that others change nothing about it."""
    digest = blake2b(encoded.tokens.tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


class LessonRows:
    """Rows of packed conversations; each pass over them in another order."""

    def __init__(self, lessons: Sequence[Encoded], length: int, seed: int) -> None:
        """Raises ChuanError where there are none."""
        if not lessons:
            raise ChuanError("there is no conversation to learn from; see data.json in the run's folder")
        self.length = length
        self._lessons, self._seed = lessons, seed
        self._bins = pack([len(lesson.tokens) for lesson in lessons], length)
        self._vacant = len(self._bins) * length - sum(len(lesson.tokens) for lesson in lessons)

    def __len__(self) -> int:
        return len(self._bins)

    @property
    def filled(self) -> float:
        """The share of positions that hold a token."""
        return 1 - self._vacant / (len(self._bins) * self.length)

    def row(self, number: int) -> Row:
        tokens = np.zeros(self.length, np.int32)
        targets = np.full(self.length, IGNORED, np.int32)
        documents = np.zeros(self.length, np.int32)  # what is left empty is a document of its own
        start = 0
        members = self._bins[locate(number, len(self._bins), self._seed)[1]]
        for place, index in enumerate(members, 1):
            lesson = self._lessons[index]
            end = start + len(lesson.tokens)
            tokens[start:end], targets[start:end], documents[start:end] = lesson.tokens, lesson.targets, place
            start = end
        return Row(tokens, targets, documents)


def pack(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Numbers of items in bins of `capacity`: largest first, each into the fullest bin that has room for it (best-fit
    decreasing). Raises ValueError for an item that is larger than a bin."""
    bins: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    rooms = 0  # bit r: there is a bin with room r
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        size = sizes[index]
        if size > capacity:
            raise ValueError(f"item {index} has the size {size}, a bin {capacity}")
        wide_enough = rooms >> size
        if wide_enough:
            room = size + (wide_enough & -wide_enough).bit_length() - 1
            chosen = by_room[room].pop()
            if not by_room[room]:
                rooms &= ~(1 << room)
        else:
            room, chosen = capacity, len(bins)
            bins.append([])
        bins[chosen].append(index)
        by_room.setdefault(room - size, []).append(chosen)
        rooms |= 1 << (room - size)
    return bins
