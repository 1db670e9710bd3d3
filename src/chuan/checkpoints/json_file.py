"""JSON files of a model folder: read with one clear line for every way in which they can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chuan.errors import ChuanError


def read_json(path: Path) -> dict[str, Any]:
    """The table in a JSON file."""
    try:
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
    return read_json(path) if path.is_file() else {}
