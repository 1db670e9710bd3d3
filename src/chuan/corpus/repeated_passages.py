"""Passages that stand in several documents, paragraphs or runs of three sentences: all but the first copy are cut.

In: documents; who of them leaves as a duplicate. Out: the passages to cut, found in three passes: every passage is
hashed into one of as many parts as there are tasks, each part is sorted by one task, and the last pass cuts. Short
ones ("谢谢", "Yes.") are no passages. Runs of three sentences are the rule of C4 (https://arxiv.org/abs/1910.10683,
section 2.2); the first copy, in the order of tasks and positions, stays, and what a document repeats of itself is left
alone. Memory grows with the passages of a part: 16 bytes each, four times that in sorting; more tasks make smaller
parts.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray
from pydantic import Field

from chuan.corpus.near_duplicates import Removals
from chuan.corpus.shingles import ShingleHasher
from chuan.recipes import Settings

# After the end of a sentence, with the quotes and brackets that close it, or of a line.
_END = re.compile(r"""(?:[。！？!?…]+|\.(?=[\s"'”’)\]]))["'”’」』）)\]]*[^\S\n]*\n?\s*|\n\s*""")
_SPAN = 3  # sentences
_PARAGRAPH = 1 << 31  # the bit that tells a paragraph, named by its first sentence, from a run of three
_FLUSHED = 1 << 20  # passages held before they are written
_PASSAGE = np.dtype([("hash", "<u8"), ("document", "<u4"), ("place", "<u4")])
_PLACE = np.dtype([("document", "<u4"), ("place", "<u4")])


class RepeatedPassageSettings(Settings):
    """Which passages count, and when a document that has lost some is given up."""

    enabled: bool = True
    # 30 characters of Chinese, or about 15 words of English: set phrases are shorter. In bytes of UTF-8 without blanks.
    min_bytes: int = Field(default=90, ge=1)
    max_share: float = Field(default=0.5, ge=0, le=1)  # of a document's bytes that may be cut; beyond, it leaves
    min_left: int = Field(default=60, ge=0)  # bytes: a shorter rest leaves too


class Passages:
    """A text cut into sentences: where they end, and which runs of them are passages."""

    def __init__(self, text: str, min_bytes: int, hasher: ShingleHasher) -> None:
        self.ends = [match.end() for match in _END.finditer(text)]
        if not self.ends or self.ends[-1] < len(text):
            self.ends.append(len(text))
        starts = [0, *self.ends[:-1]]
        self._text = text
        contents = [
            "".join(text[start:end].lower().split()).encode("utf-8", "surrogatepass")
            for start, end in zip(starts, self.ends, strict=True)
        ]
        self.bytes = np.zeros(len(contents) + 1, np.int64)
        np.cumsum([len(content) for content in contents], out=self.bytes[1:])
        tokens = np.array([xxhash.xxh3_64_intdigest(content) for content in contents], np.uint64)
        # Paragraphs begin where a line does.
        lines = [0, *(i + 1 for i, end in enumerate(self.ends[:-1]) if "\n" in text[max(0, end - 8) : end])]
        self.first = np.array(lines, np.int64)
        self.last = np.append(self.first[1:], len(contents))
        spans = np.arange(max(0, len(contents) - _SPAN + 1))
        begins = np.concatenate([self.first, spans])
        stops = np.concatenate([self.last, spans + _SPAN])
        self.places = np.concatenate([self.first | _PARAGRAPH, spans]).astype(np.uint32)
        self.hashes = hasher.hash_runs(hasher.sum_prefixes(tokens), begins, stops)
        chosen = self.bytes[stops] - self.bytes[begins] >= min_bytes
        self.places, self.hashes = self.places[chosen], self.hashes[chosen]

    def cut(self, places: NDArray[np.uint32]) -> tuple[str, str, float]:
        """What stays, what is cut, and the share of bytes that is cut."""
        gone = np.zeros(len(self.ends), bool)
        for place in places.tolist():
            if place & _PARAGRAPH:
                begin = place ^ _PARAGRAPH
                stop = int(self.last[np.searchsorted(self.first, begin)])
            else:
                begin, stop = place, place + _SPAN
            gone[begin:stop] = True
        starts = [0, *self.ends[:-1]]
        pieces = [self._text[start:end] for start, end in zip(starts, self.ends, strict=True)]
        stays = "".join(piece for piece, leaves in zip(pieces, gone, strict=True) if not leaves)
        cut = "".join(piece for piece, leaves in zip(pieces, gone, strict=True) if leaves)
        total = int(self.bytes[-1])
        return stays.strip("\n"), cut, float(np.diff(self.bytes)[gone].sum()) / total if total else 0.0


class WritePassages(PipelineStep):
    """Hashes the passages of the documents that are no duplicates into `passages/PART/RANK.bin`."""

    type = "Dedup"
    name = "Passages"

    def __init__(self, settings: RepeatedPassageSettings, folder: str) -> None:
        super().__init__()
        self.settings = settings
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        removals, hasher = Removals(self.folder, rank), ShingleHasher()
        paths = [Path(self.folder, "passages", f"{part:05d}", f"{rank:05d}.bin") for part in range(world_size)]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
        held: list[NDArray[np.void]] = []
        count = 0
        for position, document in enumerate(data):
            if removals.take(position):
                continue
            passages = Passages(document.text, self.settings.min_bytes, hasher)
            records = np.empty(len(passages.hashes), _PASSAGE)
            records["hash"], records["document"], records["place"] = passages.hashes, position, passages.places
            held.append(records)
            count += len(records)
            if count >= _FLUSHED:
                _append(held, paths)
                held, count = [], 0
        _append(held, paths)


class FindRepeats(PipelineStep):
    """Finds, in the part that is this task's, the passages that an earlier document has: `repeats/RANK/PART.bin`."""

    type = "Dedup"
    name = "Repeats"

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = Path(folder)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        paths = sorted((self.folder / "passages" / f"{rank:05d}").glob("*.bin"))
        parts = [np.fromfile(path, _PASSAGE) for path in paths]
        tasks = np.repeat([int(path.stem) for path in paths], [len(part) for part in parts]).astype(np.uint32)
        records = np.concatenate([np.empty(0, _PASSAGE), *parts])
        del parts
        order = np.argsort(records["hash"], kind="stable")  # so equal ones stay in the order of tasks and positions
        records, tasks = records[order], tasks[order]
        begins = np.ones(len(records), bool)
        begins[1:] = records["hash"][1:] != records["hash"][:-1]
        first = np.flatnonzero(begins)[np.cumsum(begins) - 1] if len(records) else np.empty(0, np.int64)
        later = (tasks != tasks[first]) | (records["document"] != records["document"][first])
        for task in np.unique(tasks[later]):
            chosen = records[later & (tasks == task)]
            places = np.empty(len(chosen), _PLACE)
            places["document"], places["place"] = chosen["document"], chosen["place"]
            path = self.folder / "repeats" / f"{task:05d}" / f"{rank:05d}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            places.tofile(path)


class Repeats:
    """What is to be cut of the documents of one task."""

    def __init__(self, folder: str, rank: int) -> None:
        paths = sorted(Path(folder, "repeats", f"{rank:05d}").glob("*.bin"))
        places = np.concatenate([np.empty(0, _PLACE), *(np.fromfile(path, _PLACE) for path in paths)])
        self._places = np.sort(places, order=("document", "place"))

    def find(self, position: int) -> NDArray[np.uint32]:
        """The places of one document, in order; mostly none."""
        documents = self._places["document"]
        begin, end = np.searchsorted(documents, [position, position + 1])
        return self._places["place"][begin:end]


def _append(held: list[NDArray[np.void]], paths: list[Path]) -> None:
    records = np.concatenate([np.empty(0, _PASSAGE), *held])
    parts = (records["hash"] >> np.uint64(33)) % np.uint64(len(paths))
    for part, path in enumerate(paths):
        with path.open("ab") as file:
            records[parts == part].tofile(file)
