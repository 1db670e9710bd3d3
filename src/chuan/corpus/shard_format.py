"""What a folder of token shards holds: its files, their types, and the manifest that names and hashes them.

In: documents as arrays of token ids. Out: a shard's two files, or a checked `Manifest`. Knows no tokenizer, mixture or
training; `chuan.corpus.shards` reads what is written here.

A shard is a pair of .npy files, which numpy maps into memory as they are: `NAME.tokens.npy`, the documents' ids one
after the other, and `NAME.index.npy`, one `INDEX_DTYPE` row a document.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from chuan.errors import ChuanError
from chuan.recipes import Settings
from chuan.staging import staged_file

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")

# `end` is where a document's tokens end in its shard, and so where the next one's begin; `hash` is that of its text;
# `copy` counts the repetitions that a mixture asked for, from 0.
INDEX_DTYPE = np.dtype([("end", "<i8"), ("hash", "<u8"), ("source", "<u2"), ("language", "<u2"), ("copy", "<u4")])


class ShardEntry(Settings):
    """One shard: its size, and the SHA-256 of its two files."""

    documents: int = Field(ge=0)
    tokens: int = Field(ge=0)
    tokens_sha256: str
    index_sha256: str


class GroupCount(Settings):
    """How much of a split came from one source in one language."""

    source: str
    language: str
    documents: int
    tokens: int


class SplitEntry(Settings):
    """One split: what it holds in all, by group, and shard by shard."""

    documents: int
    tokens: int
    groups: list[GroupCount]
    shards: list[ShardEntry]


class TokenizerEntry(Settings):
    """Which tokenizer the ids are of: the SHA-256 of its `tokenizer.model` or `tokenizer.json`."""

    file: str
    sha256: str
    vocab_size: int = Field(gt=0)
    eos_id: int


class Manifest(Settings):
    """`manifest.json`: written last, so that a folder without one is not finished."""

    format_version: int
    dtype: Literal["uint16", "uint32"]
    tokenizer: TokenizerEntry
    sources: list[str]
    languages: list[str]
    splits: dict[Split, SplitEntry]
    mixture: dict[str, Any]
    recipe: dict[str, Any]


def choose_dtype(vocab_size: int) -> Literal["uint16", "uint32"]:
    """Two bytes where every id fits in them."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def name_shard(split: Split, number: int) -> str:
    """The name that a shard's two files share."""
    return f"{split}-{number:05d}"


def tokens_path(folder: Path, split: Split, number: int) -> Path:
    return folder / f"{name_shard(split, number)}.tokens.npy"


def index_path(folder: Path, split: Split, number: int) -> Path:
    return folder / f"{name_shard(split, number)}.index.npy"


def write_shard(
    folder: Path, split: Split, number: int, index: np.ndarray, documents: Iterable[np.ndarray], dtype: str
) -> ShardEntry:
    """Writes one shard, each file whole or not at all.

    `index` has one `INDEX_DTYPE` row for each of `documents`, in order; the same values give the same bytes.
    """
    total = int(index["end"][-1]) if len(index) else 0
    with staged_file(tokens_path(folder, split, number)) as path, open(path, "wb") as file:
        tokens = _HashingFile(file)
        _write_header(tokens, np.dtype(dtype).newbyteorder("<"), total)
        for document in documents:
            tokens.write(np.ascontiguousarray(document, dtype=np.dtype(dtype).newbyteorder("<")).data)
    with staged_file(index_path(folder, split, number)) as path, open(path, "wb") as file:
        rows = _HashingFile(file)
        _write_header(rows, INDEX_DTYPE, len(index))
        rows.write(np.ascontiguousarray(index, dtype=INDEX_DTYPE).tobytes())
    return ShardEntry(
        documents=len(index), tokens=total, tokens_sha256=tokens.hexdigest(), index_sha256=rows.hexdigest()
    )


def load_manifest(folder: Path) -> Manifest:
    """Reads `manifest.json`. Raises ChuanError where it is missing, broken, or of another version."""
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.get("format_version") if isinstance(values, dict) else None
        if version != FORMAT_VERSION:
            raise ChuanError(
                f"{path} is of format {version!r}, and this Chuan reads {FORMAT_VERSION}; build the shards again"
            )
        return Manifest.model_validate(values)
    except FileNotFoundError:
        raise ChuanError(
            f"{folder} holds no finished token shards ({MANIFEST} is missing); run `chuan corpus build`"
        ) from None
    except OSError as error:
        raise ChuanError(f"{path} cannot be read: {error.strerror}; put that right and try again") from None
    except (ValueError, RecursionError) as error:
        what = "what a manifest of token shards is" if isinstance(error, ValidationError) else "JSON"
        raise ChuanError(f"{path} is not {what}; build the shards again") from None


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `manifest.json`, whole or not at all."""
    with staged_file(folder / MANIFEST) as path:
        text = json.dumps(manifest.model_dump(mode="json"), ensure_ascii=False, indent=1)
        path.write_text(text + "\n", encoding="utf-8")


def size_on_disk(dtype: np.dtype, length: int) -> int:
    """The bytes of a .npy file of one dimension, header included."""
    header = io.BytesIO()
    _write_header(header, dtype, length)
    return len(header.getvalue()) + length * dtype.itemsize


def hash_file(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _HashingFile:
    """A file that is hashed while it is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def write(self, data: Any) -> int:
        self._hash.update(data)
        return self._file.write(data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _write_header(file: Any, dtype: np.dtype, length: int) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, header)
