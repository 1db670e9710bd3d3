"""What was checked on this machine, so that it is not checked again until it changes: 15 GB take a minute.

In: files, and what was found of them. Out: whether a file is still the one. Knows no hashes and no formats.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path

from platformdirs import user_cache_path


class Ledger:
    """Which files of a folder (or the one of that path) were checked and found right, by size and time."""

    def __init__(self, folder: Path) -> None:
        key = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:32]
        self._path = user_cache_path("chuan") / "verified" / f"{key}.json"
        try:
            entries = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            entries = {}
        self._entries: dict[str, list[object]] = entries if isinstance(entries, dict) else {}

    def knows(self, path: Path, digest: str) -> bool:
        """Whether this very file had this hash."""
        return path.is_file() and self._entries.get(str(path)) == _describe_file(path, digest)

    def note(self, path: Path, digest: str) -> None:
        """Writes down that it has; what cannot be written down is hashed again next time."""
        self._entries[str(path)] = _describe_file(path, digest)
        temporary = None
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self._path.parent, delete=False, encoding="utf-8") as out:
                temporary = Path(out.name)
                json.dump(self._entries, out)
            temporary.replace(self._path)
            return
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _describe_file(path: Path, digest: str) -> list[object]:
    status = path.stat()
    return [digest, status.st_size, status.st_mtime_ns]
