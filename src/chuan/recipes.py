"""Recipes: TOML files read into typed, frozen settings that live beside the code they configure.

In: a file, and overrides `a.b=c` from the command line. Out: an instance of the `Settings` class that the caller names,
or one line that says which key is wrong. Knows no recipe of its own.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError

from chuan.errors import ChuanError, first_line


class Settings(BaseModel):
    """What a part of a recipe derives from: keys that it does not have are errors, and nothing changes after reading.

    A number is not taken from a text, nor a truth from a number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


S = TypeVar("S", bound=Settings)


def load_recipe(path: str | Path, kind: type[S], overrides: Sequence[str] = ()) -> S:
    """Reads a recipe; each override `a.b=c` replaces one key, `c` as TOML writes it or, where it is not TOML, a text.

    Raises ChuanError for a file that is missing or not TOML, a key that is unknown or missing, and a value of the wrong
    kind or out of its range.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ChuanError(f"{path} cannot be read: {error.strerror}; name a recipe (recipes/ holds some)") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ChuanError(f"{path} is not TOML: {first_line(error)}") from None
    for override in overrides:
        _override(values, override)
    try:
        # By way of JSON, where a strict reading still takes an array for a tuple and a text for a path.
        return kind.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise ChuanError(f"{path}: {_explain(error)}") from None


def render_recipe(settings: Settings) -> str:
    """A recipe with every value that it resolved to, as TOML; what is None is left out, as it was."""
    return tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True))


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ChuanError(f"--set {override} is not of the form a.b=c")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, last = key.split(".")
    for name in tables:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise ChuanError(f"--set {override}: {name} is a value, not a table of values")
    values[last] = value


def _explain(error: ValidationError) -> str:
    """The first thing wrong, as `key: what`; pydantic's own words where they say enough."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{key} is no key of this recipe; look for a misspelling in it"
    if first["type"] == "missing":
        return f"{key} is missing"
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else message
