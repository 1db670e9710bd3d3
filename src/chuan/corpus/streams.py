"""The bytes of an input file, whatever compresses it, in bounded memory.

In: a path; gzip and zstd are told by their first bytes. Out: chunks, lines, or a binary stream. A file that is cut or
damaged gives all that can still be read, then a `BrokenStreamError` that says how much of it is lost. Knows no formats.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import zstandard

from chuan.errors import first_line

MAX_LINE = 1 << 26  # 64 MiB: a longer line is no record but a damaged file
_GZIP, _ZSTD, _ZSTD_SKIPPABLE = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\x2a\x4d\x18"
# zstd expands 4 bytes to 128 KiB at most, and its decompressor gives out all that a piece of input makes.
_PLAIN_CHUNK, _GZIP_CHUNK, _ZSTD_CHUNK = 1 << 20, 1 << 14, 1 << 13


class BrokenStreamError(Exception):
    """The rest of a file cannot be read. `lost` is the share of the file that is behind the break."""

    def __init__(self, what: str, lost: float) -> None:
        super().__init__(what)
        self.lost = lost


def read_chunks(path: Path) -> Iterator[bytes]:
    """The content of a file, decompressed, in pieces.

    Raises BrokenStreamError where the file is cut off, damaged, not what its name says, or cannot be read.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(4)
            file.seek(0)
            if head[:2] == _GZIP:
                yield from _decompress(file, size, _GZIP_CHUNK, "gzip")
            elif head == _ZSTD or (head[1:] == _ZSTD_SKIPPABLE and 0x50 <= head[0] <= 0x5F):
                yield from _decompress(file, size, _ZSTD_CHUNK, "zstd")
            elif head and path.suffix in (".gz", ".zst"):
                raise BrokenStreamError(f"the file does not begin as a {path.suffix} file does", 1.0)
            else:
                while chunk := file.read(_PLAIN_CHUNK):
                    yield chunk
    except OSError as error:
        raise BrokenStreamError(f"the file cannot be read: {error.strerror or first_line(error)}", 1.0) from None


def read_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Lines with their numbers from 1, without their ends; None is a line of more than `MAX_LINE` bytes.

    Raises BrokenStreamError after the last whole line of a broken file.
    """
    number, pending, size = 1, [b""], 0
    broken: BrokenStreamError | None = None
    chunks = read_chunks(path)
    while True:
        try:
            chunk = next(chunks, b"")
        except BrokenStreamError as error:
            broken, chunk = error, b""
        if not chunk:
            break
        first, *rest = chunk.split(b"\n")
        size += len(first)
        if size <= MAX_LINE:
            pending.append(first)
        if not rest:
            continue
        yield number, b"".join(pending) if size <= MAX_LINE else None
        for line in rest[:-1]:
            number += 1
            yield number, line
        number += 1
        pending, size = [rest[-1]], len(rest[-1])
    if broken is not None:
        raise broken  # what is pending was cut
    if size:
        yield number, b"".join(pending) if size <= MAX_LINE else None


def open_stream(path: Path) -> IO[bytes]:
    """A buffered, forward-only stream of what `read_chunks` gives, with its errors."""
    return io.BufferedReader(_ChunkStream(read_chunks(path)), 1 << 16)


class _ChunkStream(io.RawIOBase):
    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def _decompress(file: IO[bytes], size: int, chunk_size: int, kind: str) -> Iterator[bytes]:
    """Members (gzip) or frames (zstd), one behind the other; a stream reader would take a cut frame for the end."""
    decompressor: Any = None
    read = 0
    while chunk := file.read(chunk_size):
        while chunk:
            if decompressor is None:
                # 31: zlib with the header and checksum of gzip
                decompressor = (
                    zlib.decompressobj(31) if kind == "gzip" else zstandard.ZstdDecompressor().decompressobj()
                )
            try:
                content = decompressor.decompress(chunk)
            except (zlib.error, zstandard.ZstdError):
                place = f"{read} of {size} bytes" if read else "its beginning"
                raise BrokenStreamError(f"the {kind} data is damaged after {place}", 1 - read / size) from None
            if content:
                yield content
            chunk = decompressor.unused_data if decompressor.eof else b""
            if decompressor.eof:
                decompressor = None
                chunk = chunk.lstrip(b"\0") if kind == "gzip" else chunk  # gzip files may be padded, as tapes were
        read = min(size, read + chunk_size)
    if decompressor is not None:
        raise BrokenStreamError(f"the {kind} data is cut off: the file ends in the middle of it", 0.0)
