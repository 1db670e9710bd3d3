"""The questions of benchmarks as hashes of runs of tokens, to be found again in a corpus.

In: the benchmarks that a recipe names. Out: an index on disk that tasks map into memory, and what of it a text holds.
Texts are compared without case, blanks, punctuation, and the marks of options and lists: "(A)", "B．", "3." and "①"
are nothing, and so is a letter that stands alone. Knows no documents and no reasons.

Legend: K entries of the index, U units (a question with its options, its stem alone, its passage).
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from chuan.corpus.shingles import HAN, Hashes, ShingleHasher, TokenHasher, split_tokens
from chuan.recipes import Settings
from chuan.tasks.question import Question

_HAN = re.compile(f"[{HAN}]")
_NUMBER = r"(?:\d{1,2}|[ivxIVX]{1,4}|[甲乙丙丁](?=[^\S\n]*[)）]))"
# Marks of options and lists: "(1)", "1)", "1.", "1．", "1、", "①". A decimal or a row of numbers ("3、5、8") is none,
# nor is "甲、乙", whom a question is about.
_MARK = re.compile(
    rf"(?<![\w.．]){_NUMBER}[^\S\n]*(?:[)）]|[.．](?!\d)|[、:：](?![^\S\n]*\d))|[\u2460-\u2473\u2160-\u217f]"
)
_LETTER = frozenset("abcdefghijklmnopqrstuvwxyz")
_BITS = 27  # of the filter in front of the index: 16 MiB, 3 % of it set by four million entries


class IndexSettings(Settings):
    """How long a run of tokens is that counts."""

    words: int = Field(default=13, ge=2, le=100)  # GPT-3 (https://arxiv.org/abs/2005.14165, appendix C)
    characters: int = Field(default=16, ge=2, le=100)  # of Chinese, about eleven words; ours
    min_tokens: int = Field(default=5, ge=1)  # questions that are shorter as a whole cannot be told from other text


@dataclass(frozen=True)
class Match:
    """A question found in a text: how many of its runs, of how many, in which part of it."""

    benchmark: str
    subject: str
    split: str
    question: str
    part: str
    matched: int
    runs: int

    @property
    def share(self) -> float:
        return self.matched / self.runs


def split_plain_tokens(text: str) -> list[str]:
    """The tokens of a text without marks; those of a text are those of its lines, one after the other."""
    text = _MARK.sub(" ", text)
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return [token for token in split_tokens(text) if token not in _LETTER]


def build_index(questions: Sequence[Question], settings: IndexSettings, folder: Path) -> None:
    """Writes the index of the questions; those that are too short to be found are counted in `units.json`."""
    tokens, shingles = TokenHasher(), ShingleHasher()
    keys: list[Hashes] = []
    units: list[list[str]] = []
    runs: list[int] = []
    anchors: list[Hashes] = []
    short_lengths: set[int] = set()
    seen: set[tuple[str, bytes]] = set()
    short = 0
    for question in questions:
        for part, words in _split_units(question):
            is_chinese = 2 * sum(_HAN.match(word) is not None for word in words) > len(words)
            length = settings.characters if is_chinese else settings.words
            if len(words) < length:
                if part != "question" or len(words) < settings.min_tokens:
                    short += part == "question"
                    continue
                length = len(words)  # found only as a whole
            prefixes = shingles.sum_prefixes(tokens.hash(words))
            hashes = np.unique(shingles.hash(prefixes, length))
            if part == "passage":
                # Passages are shared by the questions on them.
                name = (question.benchmark, hashes.tobytes())
                if name in seen:
                    continue
                seen.add(name)
            if length < (settings.characters if is_chinese else settings.words):
                short_lengths.add(length)
                anchors.append(shingles.hash(prefixes, settings.min_tokens)[:1])
            keys.append(hashes)
            runs.append(len(hashes))
            units.append([question.benchmark, question.subject, question.split, question.id, part])
    merged = np.concatenate([np.empty(0, np.uint64), *keys])
    owners = np.repeat(np.arange(len(units), dtype=np.uint32), runs)
    order = np.argsort(merged, kind="stable")
    merged = merged[order]
    begins = np.unique(np.concatenate([np.empty(0, np.uint64), *anchors]))
    filter_bits = np.zeros(1 << _BITS, bool)
    filter_bits[merged >> np.uint64(64 - _BITS)] = True
    filter_bits[begins >> np.uint64(64 - _BITS)] = True
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "keys.npy", merged)
    np.save(folder / "anchors.npy", begins)
    np.save(folder / "owners.npy", owners[order])
    np.save(folder / "runs.npy", np.array(runs, np.uint32))
    np.save(folder / "filter.npy", np.packbits(filter_bits, bitorder="little"))
    content = {
        "lengths": [settings.words, settings.characters],
        "anchor": settings.min_tokens,
        "short": sorted(short_lengths),
        "too_short": short,
        "units": units,
    }
    (folder / "units.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


class BenchmarkIndex:
    """The index, mapped from disk and so shared by the tasks of a machine."""

    def __init__(self, folder: Path) -> None:
        self._keys: Hashes = _map(folder / "keys.npy")
        self._owners: NDArray[np.uint32] = _map(folder / "owners.npy")
        self._runs: NDArray[np.uint32] = np.load(folder / "runs.npy")
        self._filter: NDArray[np.uint8] = _map(folder / "filter.npy")
        content = json.loads((folder / "units.json").read_text(encoding="utf-8"))
        self._anchors: Hashes = np.load(folder / "anchors.npy")
        self._words, self._characters = content["lengths"]
        self._anchor, self._short = content["anchor"], content["short"]
        self.too_short: int = content["too_short"]  # questions that cannot be found
        self._units: list[list[str]] = content["units"]
        self._tokens, self._shingles = TokenHasher(), ShingleHasher()

    def find(self, text: str, min_share: float) -> tuple[list[Match], list[tuple[int, int]]]:
        """The questions of which the text holds that share, and the ranges of tokens where they stand.

        A unit that has no run but itself is found whole or not at all. Tokens are those of `split_plain_tokens`.
        """
        hits = list(self._find_runs(text))
        if not hits:
            return [], []
        keys = np.unique(np.concatenate([hashes for hashes, _, _ in hits]))
        starts, ends = (np.searchsorted(self._keys, keys, side) for side in ("left", "right"))
        owners = np.concatenate([self._owners[start:end] for start, end in zip(starts, ends, strict=True)])
        found, counts = np.unique(owners, return_counts=True)
        chosen = counts >= np.maximum(1, min_share * self._runs[found])
        found, counts = found[chosen], counts[chosen]
        if not len(found):
            return [], []
        theirs = np.repeat(np.arange(len(keys)), ends - starts)[np.isin(owners, found)]
        keys = keys[np.unique(theirs)]
        ranges = [
            (int(position), int(position) + length)
            for hashes, positions, length in hits
            for position in positions[np.isin(hashes, keys)]
        ]
        return [self._describe(*pair) for pair in zip(found.tolist(), counts.tolist(), strict=True)], sorted(ranges)

    def _describe(self, unit: int, matched: int) -> Match:
        benchmark, subject, split, question, part = self._units[unit]
        return Match(benchmark, subject, split, question, part, matched, int(self._runs[unit]))

    def _find_runs(self, text: str) -> list[tuple[Hashes, NDArray[np.int64], int]]:
        """For each length, the hashes of runs that are in the index, and where they begin."""
        tokens = self._tokens.hash(split_plain_tokens(text))
        prefixes = self._shingles.sum_prefixes(tokens)
        lengths = {self._words, self._characters} if _HAN.search(text) else {self._words}
        hits = []
        for length in sorted(lengths):
            hashes = self._shingles.hash(prefixes, length)
            positions, hashes = self._look_up(hashes, np.arange(len(hashes)), self._keys)
            hits.append((hashes, positions, length))
        # Questions shorter than a run: where one begins, is the whole of it there?
        hashes = self._shingles.hash(prefixes, self._anchor)
        begins, _ = self._look_up(hashes, np.arange(len(hashes)), self._anchors)
        for length in self._short if len(begins) else ():
            starts = begins[begins + length <= len(tokens)]
            hashes = self._shingles.hash_runs(prefixes, starts, starts + length)
            positions, hashes = self._look_up(hashes, starts, self._keys)
            hits.append((hashes, positions, length))
        return [hit for hit in hits if len(hit[0])]

    def _look_up(self, hashes: Hashes, positions: NDArray[np.int64], keys: Hashes) -> tuple[NDArray[np.int64], Hashes]:
        """Those of the hashes that are among the sorted keys, with their positions."""
        slots = (hashes >> np.uint64(64 - _BITS)).astype(np.int64)
        chosen = np.flatnonzero(self._filter[slots >> 3] >> (slots & 7).astype(np.uint8) & 1)
        hashes, positions = hashes[chosen], positions[chosen]
        if not len(keys):
            return positions[:0], hashes[:0]
        exact = keys[np.minimum(np.searchsorted(keys, hashes), len(keys) - 1)] == hashes
        return positions[exact], hashes[exact]


def _map(path: Path) -> NDArray[Any]:
    return np.load(path, mmap_mode="r").view(np.ndarray)  # whose slices are cheaper than those of a memmap


def _split_units(question: Question) -> list[tuple[str, list[str]]]:
    stem = split_plain_tokens(question.question)
    # Without their marks, which nobody else need have.
    choices = [token for choice in question.choices for token in split_plain_tokens(choice)]
    units = [("question", stem + choices)]
    if choices:
        units.append(("stem", stem))
    if question.passage:
        units.append(("passage", split_plain_tokens(question.passage)))
    return units
