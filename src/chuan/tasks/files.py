"""Reading the files of benchmarks: CSV cells as they are, JSON lines, JSON; each mistake as one line for the user.

In: a path. Out: rows or objects. Cells stay text (MMLU has the option `None`, which data frames turn into a missing
value); a CRLF inside a cell becomes LF and nothing else changes. Knows no benchmark.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chuan.errors import ChuanError, first_line


def read_csv(path: Path) -> list[list[str]]:
    """The rows of a CSV file, blank lines left out. Raises ChuanError for one that is missing or not CSV in UTF-8."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file, strict=True) if row]
    except OSError as error:
        raise _unreadable(path, error) from None
    except UnicodeDecodeError:
        raise ChuanError(f"{path} is not UTF-8; fetch it again from its source") from None
    except csv.Error as error:
        raise ChuanError(f"{path} is not CSV: {first_line(error)}; fetch it again from its source") from None
    return [[normalise_newlines(cell) for cell in row] for row in rows]


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON lines file with their number from 0. Lines end at LF alone: texts hold other separators."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file):
                value = _parse(line, f"{path}, line {number + 1}")
                if not isinstance(value, dict):
                    raise ChuanError(
                        f"{path}, line {number + 1} is no JSON object; fetch the file again from its source"
                    )
                yield number, value
    except OSError as error:
        raise _unreadable(path, error) from None


def read_json(path: Path) -> Any:
    """One JSON value. Raises ChuanError for a file that is missing or not JSON."""
    try:
        return _parse(path.read_bytes(), str(path))
    except OSError as error:
        raise _unreadable(path, error) from None


def normalise_newlines(text: str) -> str:
    return text.replace("\r\n", "\n")


def find_folder(data: Path, places: list[str], what: str) -> Path:
    """The first of `places` in `data` that is a folder, as `data` may be the benchmark's own or the one around it."""
    for place in places:
        if (data / place).is_dir():
            return data / place
    raise ChuanError(f"{data} holds no {what}: none of {', '.join(places)} is there; name the folder of its data")


def _parse(content: bytes, where: str) -> Any:
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ChuanError(f"{where} is not UTF-8; fetch the file again from its source") from None
    except (ValueError, RecursionError) as error:
        raise ChuanError(f"{where} is not JSON: {first_line(error)}; fetch the file again from its source") from None


def _unreadable(path: Path, error: OSError) -> ChuanError:
    return ChuanError(f"{path} cannot be read: {error.strerror}; name the folder of the benchmark's data")
