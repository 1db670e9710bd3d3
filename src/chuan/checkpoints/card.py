"""Where a model came from, under which licence, and the `README.md` that says so in every folder we write.

In: an opened checkpoint, or what is known of one. Out: an `Origin`; a model card in Markdown with the hub's front
matter. The risks it lists are those of the published Baichuan-7B card.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from chuan.checkpoints.checkpoint import Checkpoint
from chuan.checkpoints.front_matter import is_hub_id, is_own_file
from chuan.errors import ChuanError, escape_unprintable

BAICHUAN_LICENCE = "Baichuan's own (registration before commercial use)"
UNKNOWN_LICENCE = "not stated; ask whoever made the model"
_LICENCE_FILE = re.compile(r"(licen[cs]e|notice|copying|use_policy)|许可|licen[cs]e.*\.pdf", re.IGNORECASE)
_UNSTATED = (None, "other", "unknown")  # what the hubs write where nobody chose
_LARGEST = 8 << 20  # of a licence file


@dataclass(frozen=True)
class Origin:
    """A model's source: a name (hub id or path), the revision where it is known, and the licence of its weights."""

    name: str
    kind: str
    revision: str | None = None
    licence: str = UNKNOWN_LICENCE
    licence_id: str | None = None  # as the hub's front matter names it
    made_from: tuple[str, ...] = ()  # the models that this one was made from, if its card says so
    made_from_revision: str | None = None
    licence_files: tuple[Path, ...] = ()


def read_origin(checkpoint: Checkpoint, name: str, revision: str | None, catalogued: str | None) -> Origin:
    """What the files say about themselves. `catalogued` is the licence that our catalogue knows, if it does."""
    return describe_origin(checkpoint.path, checkpoint.kind, checkpoint.read_card(), name, revision, catalogued)


def describe_origin(
    path: Path,
    kind: str,
    matter: Mapping[str, str | list[str]],
    name: str,
    revision: str | None = None,
    catalogued: str | None = None,
) -> Origin:
    """The same for any files; `matter` is the head of their card."""
    stated = matter.get("license")
    named = matter.get("license_name") or (None if stated in _UNSTATED else stated)
    licence = catalogued or (", ".join(_list(named)) if named else None)
    if licence is None:
        licence = BAICHUAN_LICENCE if kind.startswith("Baichuan") else UNKNOWN_LICENCE
    base_revision = matter.get("base_model_revision")
    return Origin(
        name=escape_unprintable(name),
        kind=kind,
        revision=revision,
        licence=licence,
        licence_id=stated if isinstance(stated, str) else None,
        made_from=tuple(_list(matter.get("base_model"))),
        made_from_revision=base_revision if isinstance(base_revision, str) else None,
        licence_files=_find_licences(path) if path.is_dir() else (),
    )


def write_card(folder: Path, origin: Origin | None, facts: Mapping[str, str]) -> None:
    """Writes `README.md` and copies the source's licence files. `facts` are rows: what was made, how, how checked."""
    origin = origin or Origin("an unnamed model in memory", "a model trained or changed in Python")
    (folder / "README.md").write_text(render_card(origin, facts), encoding="utf-8")
    for file in origin.licence_files:
        if not (folder / file.name).exists():
            try:
                content = file.read_bytes()
            except OSError as error:
                raise ChuanError(f"the licence {file} cannot be read: {error.strerror}; make it readable") from None
            (folder / file.name).write_bytes(content)


def render_card(origin: Origin, facts: Mapping[str, str]) -> str:
    """The card's text."""
    matter: dict[str, Any] = {"license": origin.licence_id or "other", "tags": ["chuan"]}
    if matter["license"] == "other":
        matter["license_name"] = origin.licence
    bases, revision = name_bases(origin)
    if bases:
        matter["base_model"] = bases[0] if len(bases) == 1 else list(bases)
    if revision:
        matter["base_model_revision"] = revision
    rows = {"made from": origin.name, "revision": origin.revision or "not known", "source": origin.kind}
    if origin.made_from:
        at = f" at revision {origin.made_from_revision}" if origin.made_from_revision else ""
        rows["which was made from"] = ", ".join(origin.made_from) + at
    table = "\n".join(f"| {key} | {_escape(value)} |" for key, value in (rows | dict(facts)).items())
    files = ", ".join(f"`{_escape(file.name).replace('`', '_')}`" for file in origin.licence_files)
    beside = "The source carried no licence file; look at where it was published."
    if files:
        beside = f"The source's licence files are beside this one: {files}."
    return f"""---
{yaml.safe_dump(matter, allow_unicode=True, sort_keys=False).rstrip()}
---

# {_escape(origin.name)}, converted by Chuan

| | |
|---|---|
{table}

## Licence of the weights

{_escape(origin.licence)}. {beside}
Converting a model changes nothing about its licence. It is not the licence of the program that converted it.

## Intended use

What the source is meant for: continuing and answering text, research, and a base for fine-tuning, within its licence.

## Out of scope

Production use before the risks below have been assessed for the case at hand; anything that the source's licence or the
law forbids; decisions about people's health, rights or money without a person who checks them.

## Risks and limits

The model can state things that are false. It can produce text that is lewd, biased or otherwise offensive. Fewer bits
change its answers a little; the table says by how much on a short probe, which is no evaluation.
"""


def name_bases(origin: Origin) -> tuple[tuple[str, ...], str | None]:
    """The models of a hub that a conversion has for its base, and their revision: the source, else the source's."""
    if is_hub_id(origin.name):
        return (origin.name,), origin.revision
    return origin.made_from, origin.made_from_revision


def _find_licences(folder: Path) -> tuple[Path, ...]:
    try:
        files = sorted(folder.iterdir())
    except OSError:
        return ()  # a folder whose files may be opened but not listed
    return tuple(file for file in files if _is_licence(folder, file))


def _is_licence(folder: Path, file: Path) -> bool:
    if not _LICENCE_FILE.search(file.name) or file.suffix.lower() not in ("", ".txt", ".md", ".pdf", ".rst"):
        return False
    return is_own_file(folder, file) and file.stat().st_size <= _LARGEST


def _list(value: str | list[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else value


def _escape(text: str) -> str:
    """A cell of a table: one line without the characters that end one."""
    return escape_unprintable(text.replace("|", "/"))
