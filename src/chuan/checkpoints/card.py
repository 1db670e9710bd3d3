"""Where a model came from, under which licence, and the `README.md` that says so in every folder we write.

In: an opened checkpoint, or what is known of one. Out: an `Origin`; a model card in Markdown with the hub's front
matter. The risks it lists are those of the published Baichuan-7B card.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from chuan.checkpoints.checkpoint import Checkpoint
from chuan.errors import escape_unprintable

BAICHUAN_LICENCE = "Baichuan's own (registration before commercial use)"
UNKNOWN_LICENCE = "not stated; ask whoever made the model"
_LICENCE_FILE = re.compile(r"(licen[cs]e|notice|copying)|许可|licen[cs]e.*\.pdf", re.IGNORECASE)
_LARGEST = 8 << 20  # of a licence file


@dataclass(frozen=True)
class Origin:
    """A model's source: a name (hub id or path), the revision where it is known, and the licence of its weights."""

    name: str
    kind: str
    revision: str | None = None
    licence: str = UNKNOWN_LICENCE
    licence_id: str | None = None  # as the hub's front matter names it
    made_from: str | None = None  # the model that this one was made from, if its card says so
    licence_files: tuple[Path, ...] = ()


def read_origin(checkpoint: Checkpoint, name: str, revision: str | None, catalogued: str | None) -> Origin:
    """What the files say about themselves. `catalogued` is the licence that our catalogue knows, if it does."""
    path, kind, matter = checkpoint.path, checkpoint.kind, checkpoint.read_card()
    made_from = matter.get("base_model")
    if isinstance(made_from, list):
        made_from = ", ".join(map(str, made_from))
    stated = matter.get("license")
    named = str(matter.get("license_name") or stated) if stated else None
    licence = catalogued or named
    if licence is None:
        licence = BAICHUAN_LICENCE if kind.startswith("Baichuan") else UNKNOWN_LICENCE
    files = sorted(path.iterdir()) if path.is_dir() else []
    return Origin(
        name=name,
        kind=kind,
        revision=revision or (str(matter["base_model_revision"]) if matter.get("base_model_revision") else None),
        licence=licence,
        licence_id=str(stated) if stated else None,
        made_from=str(made_from) if made_from else None,
        licence_files=tuple(file for file in files if _is_licence(file)),
    )


def write_card(folder: Path, origin: Origin | None, facts: Mapping[str, str]) -> None:
    """Writes `README.md` and copies the source's licence files. `facts` are rows: what was made, how, how checked."""
    origin = origin or Origin("an unnamed model in memory", "a model trained or changed in Python")
    (folder / "README.md").write_text(render_card(folder.name, origin, facts), encoding="utf-8")
    for file in origin.licence_files:
        if file.is_file() and not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)


def render_card(title: str, origin: Origin, facts: Mapping[str, str]) -> str:
    """The card's text."""
    base = origin.made_from or (origin.name if re.fullmatch(r"[\w.-]+/[\w.-]+", origin.name) else None)
    matter: dict[str, Any] = {"license": origin.licence_id or "other", "tags": ["chuan"]}
    if matter["license"] == "other":
        matter["license_name"] = origin.licence
    if base:
        matter["base_model"] = base
    if origin.revision:
        matter["base_model_revision"] = origin.revision
    rows = {"made from": origin.name, "revision": origin.revision or "not known", "source": origin.kind}
    if origin.made_from:
        rows["which was made from"] = origin.made_from
    table = "\n".join(f"| {key} | {_escape(value)} |" for key, value in (rows | dict(facts)).items())
    files = ", ".join(f"`{file.name}`" for file in origin.licence_files)
    beside = "The source carried no licence file; look at where it was published."
    if files:
        beside = f"The source's licence files are beside this one: {files}."
    return f"""---
{yaml.safe_dump(matter, allow_unicode=True, sort_keys=False).rstrip()}
---

# {_escape(base or origin.name)}, converted by Chuan

| | |
|---|---|
{table}

## Licence of the weights

{origin.licence}. {beside}
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


def _is_licence(file: Path) -> bool:
    if not _LICENCE_FILE.search(file.name) or file.suffix.lower() not in ("", ".txt", ".md", ".pdf", ".rst"):
        return False
    return file.is_file() and file.stat().st_size <= _LARGEST


def _escape(text: str) -> str:
    """A cell of a table: one line without the characters that end one."""
    return escape_unprintable(text.replace("|", "/"))
