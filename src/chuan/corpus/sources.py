"""What a corpus is read from: the files that a recipe names, cut into pieces of work of like size.

In: the sources of a recipe. Out: for each task the pieces it reads. Which task reads what depends on names and sizes
alone, so that it is the same on every machine. Reads no file.
"""

from __future__ import annotations

import codecs
import glob
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from chuan.errors import ChuanError
from chuan.recipes import Settings

Format = Literal["jsonl", "parquet", "txt", "warc"]
# What the name of a file ends in, without .gz and .zst.
_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".txt": "txt",
    ".md": "txt",
    ".warc": "warc",
    ".wet": "warc",
}
_SMALLEST_PIECE = 1 << 20  # bytes of a file; below it, reading a file twice to share it out does not pay


class SourceSettings(Settings):
    """One source: files of one kind, under one name that the report and the mixture use."""

    name: str = Field(pattern=r"^[\w.-]+$")
    path: str  # a file or a pattern (`**` for folders below), relative to the recipe's `data`
    format: Format | None = None  # by the names of the files, if not given
    text_key: str = "text"  # of a JSON record or a parquet table; records with `messages` are taken as dialogues
    encodings: list[str] = Field(
        default=["utf-8"]
    )  # tried in this order on each record: ["utf-8", "gb18030"] reads both
    language: Literal["zh", "en"] | None = None  # detected, if not given
    weight: float = Field(default=1.0, gt=0)  # how often it is taken: 0.25 is every fourth document, 2 is each twice

    @field_validator("encodings")
    @classmethod
    def _known(cls, encodings: list[str]) -> list[str]:
        for encoding in encodings:
            try:
                extends_ascii = "\n{".encode(codecs.lookup(encoding).name) == b"\n{"
            except LookupError:
                raise ValueError(f"{encoding} is no encoding that Python knows") from None
            if not extends_ascii:
                raise ValueError(f"{encoding} does not extend ASCII; convert the files to UTF-8")
        if not encodings:
            raise ValueError("name one encoding at least")
        return encodings


@dataclass(frozen=True)
class SourceFile:
    """A file of a source. `name` is what its documents are called by: it does not depend on where the data lies."""

    source: SourceSettings
    path: str
    name: str
    format: Format
    size: int


@dataclass(frozen=True)
class Piece:
    """The records of a file whose turn it is: block `part` of each `parts` blocks."""

    file: SourceFile
    part: int = 0
    parts: int = 1


def find_files(sources: Sequence[SourceSettings], data: str = ".") -> list[SourceFile]:
    """The files of all sources, in the order of the recipe, then of their names.

    Raises ChuanError where names of sources repeat, a source matches nothing, or a format cannot be told.
    """
    files: list[SourceFile] = []
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise ChuanError(f"two sources are called {name}; give each its own name")
    for source in sources:
        pattern = os.path.join(os.path.expanduser(data), os.path.expanduser(source.path))
        found = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
        found = [path for path in found if os.path.isfile(path)]
        if not found:
            raise ChuanError(
                f"source {source.name}: no file matches {pattern}; name the folder of the data by --set data=FOLDER"
            )
        folder = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in found])
        for path in found:
            name = Path(os.path.relpath(os.path.abspath(path), folder)).as_posix()
            kind = source.format or _format_of(source.name, path)
            files.append(SourceFile(source, os.path.abspath(path), name, kind, os.path.getsize(path)))
    return files


def assign_pieces(files: Sequence[SourceFile], tasks: int) -> list[list[Piece]]:
    """Shares files out to tasks: the largest first, each to the task that has least; large files are split."""
    share = max(sum(file.size for file in files) / (2 * tasks), _SMALLEST_PIECE)
    pieces: list[Piece] = []
    for file in files:
        parts = 1 if file.format == "txt" else min(tasks, math.ceil(file.size / share))
        pieces += [Piece(file, part, parts) for part in range(parts)]
    order = sorted(range(len(pieces)), key=lambda i: (-pieces[i].file.size / pieces[i].parts, i))
    loads = [0.0] * tasks
    chosen: list[list[int]] = [[] for _ in range(tasks)]
    for i in order:
        task = loads.index(min(loads))
        loads[task] += pieces[i].file.size / pieces[i].parts
        chosen[task].append(i)
    return [[pieces[i] for i in sorted(indices)] for indices in chosen]


def _format_of(source: str, path: str) -> Format:
    bare = path.lower().removesuffix(".gz").removesuffix(".zst")
    suffix = os.path.splitext(bare)[1]
    if suffix not in _FORMATS:
        raise ChuanError(
            f"source {source}: the format of {path} cannot be told by its name; set format to jsonl, parquet, txt or "
            "warc"
        )
    return _FORMATS[suffix]
