"""Token shards read for training: documents and windows of tokens, mapped into memory.

In: a folder that `chuan corpus build` finished. Out: numpy views of token ids. Knows no tokenizer and no model.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chuan.corpus.shard_format import (
    INDEX_DTYPE,
    MANIFEST,
    ShardEntry,
    Split,
    hash_file,
    index_path,
    load_manifest,
    size_on_disk,
    tokens_path,
)
from chuan.errors import ChuanError, first_line


@dataclass(frozen=True)
class DocumentInfo:
    """Where a document came from. `hash` is that of its text; `copy` counts the mixture's repetitions of it, from 0."""

    source: str
    language: str
    hash: int
    copy: int


@dataclass(frozen=True)
class Window:
    """Consecutive tokens of a split. `starts` are the positions in `tokens` at which a document begins."""

    tokens: np.ndarray
    starts: np.ndarray


class ShardReader:
    """One split of a folder of shards, as a list of documents and as one long stream of tokens.

    Opening reads the manifest and looks at the sizes of the files; tokens are read when they are used. Every document
    ends with the tokenizer's eos. Views are read-only, of uint16 or uint32.
    """

    def __init__(self, folder: str | Path, split: Split = "train") -> None:
        """Raises ChuanError where the folder is not finished, or a file is missing or not as long as it was."""
        self.folder = Path(folder)
        self.manifest = load_manifest(self.folder)
        self.split: Split = split
        if split not in self.manifest.splits:
            raise ChuanError(f"{self.folder} has no split {split!r}; it has {', '.join(self.manifest.splits)}")
        self._entry = self.manifest.splits[split]
        shards = self._entry.shards
        self.dtype = np.dtype(self.manifest.dtype).newbyteorder("<")
        self._first_document = np.cumsum([0, *(shard.documents for shard in shards)])
        self._first_token = np.cumsum([0, *(shard.tokens for shard in shards)])
        if len(self) != self._entry.documents or self.token_count != self._entry.tokens:
            raise ChuanError(f"{self.folder / MANIFEST} does not add up; build the shards again")
        for number, shard in enumerate(shards):
            _check_size(tokens_path(self.folder, split, number), size_on_disk(self.dtype, shard.tokens))
            _check_size(index_path(self.folder, split, number), size_on_disk(INDEX_DTYPE, shard.documents))
        self._opened: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        """The number of documents."""
        return int(self._first_document[-1])

    @property
    def token_count(self) -> int:
        """The number of tokens, the eos of every document included."""
        return int(self._first_token[-1])

    def document(self, number: int) -> np.ndarray:
        """The tokens of one document, its eos included: a view, no copy."""
        shard, row = self._locate(number)
        tokens, index = self._open(shard)
        start = int(index["end"][row - 1]) if row else 0
        return tokens[start : int(index["end"][row])]

    def describe(self, number: int) -> DocumentInfo:
        """Where one document came from."""
        shard, row = self._locate(number)
        found = self._open(shard)[1][row]
        manifest = self.manifest
        return DocumentInfo(
            manifest.sources[found["source"]],
            manifest.languages[found["language"]],
            int(found["hash"]),
            int(found["copy"]),
        )

    def window(self, start: int, length: int) -> Window:
        """`length` tokens from position `start` of the stream on: a view inside one shard, else a copy."""
        if start < 0 or length < 0 or start + length > self.token_count:
            raise IndexError(f"tokens {start} to {start + length} of {self.token_count}")
        parts: list[np.ndarray] = []
        starts: list[np.ndarray] = []
        shard = int(np.searchsorted(self._first_token, start, side="right")) - 1
        done = 0
        while done < length:
            tokens, index = self._open(shard)
            begin = start + done - int(self._first_token[shard])
            part = tokens[begin : begin + length - done]
            ends = index["end"]
            if begin == 0 and len(part):
                starts.append(np.array([done]))
            # Where a document ends, the next one begins. (numpy's own search would first copy the whole column.)
            first, last = bisect.bisect_left(ends, begin), bisect.bisect_left(ends, begin + len(part))
            starts.append(ends[first:last] - begin + done)
            parts.append(part)
            done += len(part)
            shard += 1
        joined = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, self.dtype), *parts])
        return Window(joined, np.concatenate([np.empty(0, np.int64), *starts]))

    def verify(self) -> None:
        """Hashes every file of every split. Raises ChuanError naming the first that is not what was written."""
        for split, entry in self.manifest.splits.items():
            for number, shard in enumerate(entry.shards):
                for path, expected in _expected_hashes(self.folder, split, number, shard):
                    try:
                        found = hash_file(path)
                    except OSError as error:
                        raise ChuanError(f"{path} cannot be read: {error.strerror}; build the shards again") from None
                    if found != expected:
                        raise ChuanError(f"{path} is damaged: its hash is not the manifest's; build the shards again")

    def _locate(self, number: int) -> tuple[int, int]:
        if not 0 <= number < len(self):
            raise IndexError(f"document {number} of {len(self)}")
        shard = int(np.searchsorted(self._first_document, number, side="right")) - 1
        return shard, number - int(self._first_document[shard])

    def _open(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens and the index of one shard, mapped when first asked for."""
        if number not in self._opened:
            shard = self._entry.shards[number]
            tokens = _map(tokens_path(self.folder, self.split, number), self.dtype, shard.tokens)
            index = _map(index_path(self.folder, self.split, number), INDEX_DTYPE, shard.documents)
            if len(index) and int(index["end"][-1]) != len(tokens):
                path = index_path(self.folder, self.split, number)
                raise ChuanError(f"{path} does not belong to its tokens; build the shards again")
            self._opened[number] = tokens, index
        return self._opened[number]


def _expected_hashes(folder: Path, split: Split, number: int, shard: ShardEntry) -> list[tuple[Path, str]]:
    return [
        (tokens_path(folder, split, number), shard.tokens_sha256),
        (index_path(folder, split, number), shard.index_sha256),
    ]


def _map(path: Path, dtype: np.dtype, length: int) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
        raise ChuanError(f"{path} cannot be read: {reason}; build the shards again") from None
    if array.dtype != dtype or array.shape != (length,):
        raise ChuanError(f"{path} is not what the manifest says; build the shards again")
    return np.asarray(array)


def _check_size(path: Path, expected: int) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ChuanError(f"{path} cannot be read: {error.strerror}; build the shards again") from None
    if size != expected:
        raise ChuanError(f"{path} has {size} bytes and was written with {expected}; build the shards again")
