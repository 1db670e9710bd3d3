"""What a folder's card says at its head: licence, base model, revision. Anybody may have written it.

In: a folder. Out: short texts of one line each, by name.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import yaml

from chuan.errors import escape_unprintable

_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---", re.DOTALL)
_LARGEST_MATTER = 100_000  # bytes
LONGEST = 200  # characters of a licence's name or a model's


def read_front_matter(folder: Path) -> dict[str, str | list[str]]:
    """The texts, and lists of texts, at the head of a folder's card; a card that cannot be read says nothing."""
    path = folder / "README.md"
    try:
        if not is_own_file(folder, path):
            return {}
        with path.open("rb") as file:
            found = _FRONT_MATTER.match(file.read(_LARGEST_MATTER).decode("utf-8", "replace"))
        values = yaml.load(found[1], _PlainLoader) if found else None
    except (OSError, yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return {}
    matter: dict[str, str | list[str]] = {}
    for key, value in values.items() if isinstance(values, dict) else ():
        texts = [clean(text) for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
        texts = [text for text in texts if 0 < len(text) <= LONGEST]
        if texts and isinstance(key, str):
            matter[key] = texts if isinstance(value, list) else texts[0]
    return matter


def is_own_file(folder: Path, path: Path) -> bool:
    """Whether a file of the folder lies there too, or where its hub keeps it: a link may lead to anybody's files."""
    real, found = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    places = [real]
    if real.parent.name == "snapshots":
        places.append(real.parents[1] / "blobs")
    return found.is_file() and any(found.is_relative_to(place) for place in places)


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name."""
    return len(name) <= LONGEST and re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def clean(text: str) -> str:
    """One line that can be shown and written: what lies between lines could pass for lines of ours."""
    return escape_unprintable(" ".join(text.split()))


class _PlainLoader(yaml.SafeLoader):
    """Without aliases: twenty lines of them say a text of gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias")
        return super().compose_node(parent, index)
