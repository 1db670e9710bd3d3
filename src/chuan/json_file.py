"""JSON files of a model folder: read with one clear line for every way in which they can be wrong, and written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chuan.errors import ChuanError


def read_json(path: Path) -> dict[str, Any]:
    """The table in a JSON file."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a named pipe would be waited for
            raise ChuanError(f"{path} is no file; fetch it again, or check the path")
        values = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise ChuanError(f"{path} is missing; fetch it again, or check the path") from None
    except OSError as error:
        raise ChuanError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ChuanError(f"{path} is not valid JSON; fetch it again") from None
    if not isinstance(values, dict):
        raise ChuanError(f"{path} must hold a JSON object, not {type(values).__name__}; fetch it again")
    return values


def read_json_if_there(path: Path) -> dict[str, Any]:
    """The table in a JSON file, or an empty one where there is no such file."""
    return read_json(path) if os.path.isfile(path) else {}


def save_json(path: Path, values: Mapping[str, Any]) -> None:
    """A table, as JSON that people can read."""
    path.write_text(render_json(values, indent=2) + "\n", encoding="utf-8")


def render_json(values: Mapping[str, Any], indent: int | None = None) -> str:
    """JSON that is valid UTF-8: half a surrogate pair, which other JSON may carry, stays an escape."""
    return json.dumps(values, ensure_ascii=False, indent=indent).encode("utf-8", "backslashreplace").decode("utf-8")
