"""Model folders, and files of data sets, from the Hugging Face hub or a mirror of it (HF_ENDPOINT).

In: a hub id. Out: a folder in the hub library's own cache, its bytes checked against the hub's hashes. Only a model's
data is fetched: never a `.py`. Knows no formats: which files are wanted is told by their names.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import hashlib
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_url, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import (
    WeakFileLock,
    are_progress_bars_disabled,
    build_hf_headers,
    disable_progress_bars,
    enable_progress_bars,
)

from chuan.checkpoints.ledger import Ledger
from chuan.errors import ChuanError, first_line
from chuan.json_file import read_json
from chuan.units import format_size

DESCRIPTIONS = [
    "config.json",
    "generation_config.json",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "README.md",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "license*",
    "licence*",
    "*License*.pdf",
    "*LICENSE*",
    "COPYING*",
    "USE_POLICY*",
    "*许可*",
]
# In the order of preference: the weights, the one file, and the index of shards.
_WEIGHTS = [
    ("model*.safetensors", "model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model*.bin", "pytorch_model.bin", "pytorch_model.bin.index.json"),
]
NEVER = ["*.py", "*.pkl", "*.pt", "*.pth", "*/*"]
_LARGE = 1 << 30
_REACH = "check the network, HF_ENDPOINT and HF_HUB_OFFLINE"


def fetch_from_hub(repo_id: str, revision: str | None = None, weights: bool = True) -> Path:
    """Downloads, or finds in the cache, what Chuan reads of a model; without its weights if they are not wanted.

    A killed download goes on where it stopped, mirrors and being offline are as the hub library has them, and every
    file is hashed once: a file with wrong bytes is removed and named.
    """
    with _one_line_errors(repo_id, revision), _quiet_when_piped():
        folder = _fetch_descriptions(repo_id, revision, weights)
        if weights and not list_whole_weights(folder):
            _fetch_weights(repo_id, folder)
        names = [path.name for path in folder.iterdir() if is_wanted(path.name, DESCRIPTIONS)]
        _verify(folder, sorted(names) + (list_whole_weights(folder) if weights else []))
    return folder


def fetch_dataset(repo_id: str, patterns: list[str]) -> Path:
    """The folder of a data set's snapshot with the files of these names, downloaded or found in the cache."""
    with _one_line_errors(repo_id, None), _quiet_when_piped():
        return Path(snapshot_download(repo_id, repo_type="dataset", allow_patterns=patterns))


def find_on_disk(repo_id: str, revision: str | None = None) -> Path | None:
    """The folder in the cache, if it is whole; quick, and never asks the hub."""
    found = try_to_load_from_cache(repo_id, "config.json", revision=revision)
    folder = Path(found).parent if isinstance(found, str) else None
    return folder if folder is not None and list_whole_weights(folder) else None


def is_wanted(name: str, patterns: list[str]) -> bool:
    """Whether a file is among the patterns, and not among those that are never fetched."""
    unwanted = "\\" in name or any(fnmatch.fnmatchcase(name, pattern) for pattern in NEVER)
    return not unwanted and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def list_whole_weights(folder: Path) -> list[str]:
    """The weight files of a folder: all that belong together, or none."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    for pattern, single, index in _WEIGHTS:
        found = [name for name in names if is_wanted(name, [pattern])]
        if single in names:  # before an index, as we open them
            return [single]
        if index in names:
            shards = read_shards(folder / index)
            return [index, *shards] if set(shards) <= set(names) else []
        if found:
            return found if not any("-of-" in name for name in found) else []
    return []


def choose_weights(names: Iterable[str], repo_id: str) -> list[str]:
    """Which of a repository's files to fetch: the one file, else an index of shards; safetensors before bin."""
    names = sorted(names)
    for pattern, single, index in _WEIGHTS:
        found = [name for name in names if is_wanted(name, [pattern])]
        if single in names:
            return [single]
        if found:
            return [index] if index in names else found
    others = [name for name in names if name.endswith(".gguf")]
    if others:
        listed = ", ".join(others[:4]) + (", ..." if len(others) > 4 else "")
        raise ChuanError(f"{repo_id} holds GGUF files only; download one of {listed:.300} and give its path")
    raise ChuanError(f"{repo_id} holds no weights that Chuan reads (safetensors or pytorch_model*.bin); check the id")


def read_shards(index: Path) -> list[str]:
    """The files that an index of shards names."""
    shards = read_json(index).get("weight_map")
    names = sorted({name for name in shards.values() if isinstance(name, str)}) if isinstance(shards, dict) else []
    if not names or not all(is_wanted(name, [pattern for pattern, *_ in _WEIGHTS]) for name in names):
        raise ChuanError(f"{index} names no files of weights; remove it and fetch it again")
    return names


def list_shards(index: Path, names: Iterable[str], repo_id: str) -> list[str]:
    """What an index names, all of which the repository must have."""
    shards = read_shards(index)
    missing = sorted(set(shards) - set(names))
    if missing:
        raise ChuanError(f"{repo_id} lacks {missing[0]}, which its {index.name} names; tell whoever made it")
    return shards


def require_space(folder: Path, size: int, setting: str) -> None:
    """Says before a download, not after hours of it, that it will not fit."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ChuanError(
            f"{format_size(size)} more are needed in {folder} but {format_size(free)} are free; "
            f"make room, or set {setting} to a folder with more"
        )


def _fetch_descriptions(repo_id: str, revision: str | None, weights: bool) -> Path:
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=DESCRIPTIONS, ignore_patterns=NEVER))
    except LocalEntryNotFoundError as error:
        # Another tool may have fetched less than we would, a licence say, and all that is needed.
        partial = getattr(error, "snapshot_path", None)
        if partial is None or not (Path(partial) / "config.json").is_file():
            raise
        if weights and not list_whole_weights(Path(partial)):
            raise
        return Path(partial)


def _fetch_weights(repo_id: str, folder: Path) -> None:
    commit = folder.name
    listing = HfApi().model_info(repo_id, revision=commit, files_metadata=True).siblings or []
    files = {file.rfilename: file for file in listing}
    names = choose_weights(files, repo_id)
    if names[0].endswith(".json"):
        _link(repo_id, commit, names)
        names = list_shards(folder / names[0], files, repo_id)
    blobs = folder.parents[1] / "blobs"
    blobs.mkdir(exist_ok=True)
    hashed = {name: file.lfs for name, file in files.items() if name in names and file.lfs is not None}
    needed = sum(lfs.size - _size(blobs / lfs.sha256) - _size(_part(blobs, lfs.sha256)) for lfs in hashed.values())
    require_space(blobs, needed, "HF_HOME")
    for name, lfs in hashed.items():
        _fetch_blob(hf_hub_url(repo_id, name, revision=commit), name, blobs, lfs.sha256, lfs.size)
    _link(repo_id, commit, names)


def _fetch_blob(url: str, name: str, blobs: Path, sha256: str, size: int) -> None:
    """One large file to its place in the library's cache, under the library's lock, hashed before it gets its name.

    The library's own download starts every killed file again from its first byte, 15 GB of them for Baichuan 2.
    """
    blob, part = blobs / sha256, _part(blobs, sha256)
    lock = blobs.parents[1] / ".locks" / blobs.parent.name / f"{sha256}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.is_file():
            return
        if _size(part) > size:
            part.unlink()
        with part.open("ab") as file:
            http_get(
                url,
                file,
                resume_size=file.tell(),
                headers=build_hf_headers(),
                expected_size=size,
                displayed_filename=name,
            )
            file.flush()
            os.fsync(file.fileno())
        if _hash_sha256(part) != sha256:
            part.unlink()
            raise ChuanError(f"the hub sent wrong bytes for {name}; it was removed, try again")
        part.replace(blob)
        Ledger(blobs.parent).note(blob, sha256)


def _link(repo_id: str, commit: str, names: list[str]) -> None:
    """Lets the library give the blobs their names in the snapshot, and fetch what is not there."""
    snapshot_download(repo_id, revision=commit, allow_patterns=[glob.escape(name) for name in names])


def _part(blobs: Path, sha256: str) -> Path:
    return blobs / f"{sha256}.incomplete"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _verify(folder: Path, names: list[str]) -> None:
    """Each file of the snapshot against the hash that names its blob: sha256, or git's sha1 for small files."""
    ledger = Ledger(folder.parents[1])
    for name in names:
        if not (folder / name).is_symlink():
            continue  # no links on this system: nothing says what the hash should be
        blob = folder.parents[1] / "blobs" / Path(os.readlink(folder / name)).name
        digest = blob.name
        if len(digest) not in (40, 64) or set(digest) - set("0123456789abcdef") or ledger.knows(blob, digest):
            continue
        if _size(blob) > _LARGE:
            print(f"Checking the hash of {name} (once)", file=sys.stderr, flush=True)
        if digest != (_hash_sha256(blob) if len(digest) == 64 else _hash_git(blob)):
            (folder / name).unlink()
            blob.unlink(missing_ok=True)
            raise ChuanError(f"the hub sent wrong bytes for {name}; it was removed, try again")
        ledger.note(blob, digest)


def _hash_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_git(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@contextlib.contextmanager
def _quiet_when_piped() -> Iterator[None]:
    """One of the library's progress bars does not notice that nobody watches."""
    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextlib.contextmanager
def _one_line_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    try:
        yield
    except RevisionNotFoundError:
        raise ChuanError(f"{repo_id} has no revision {revision!r}; check the name") from None
    except HFValidationError:
        raise ChuanError(f"{repo_id!r:.100} is no hub id (owner/name), and no folder of that name exists") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HTTPError) as error:
        raise ChuanError(_explain(repo_id, error)) from None
    except OSError as error:
        if error.errno is None:
            raise ChuanError(f"the hub sent {repo_id} wrongly: {first_line(error):.200}; try again") from None
        raise ChuanError(
            f"{repo_id} could not be stored: {error.strerror}; make room, or set HF_HOME to another folder"
        ) from None


def _explain(repo_id: str, error: BaseException) -> str:
    """What the hub's answer means; the library hides it behind what was not found in the cache."""
    answer: BaseException | None = error
    while answer is not None and not isinstance(answer, HfHubHTTPError):
        answer = answer.__cause__
    if answer is None:
        if isinstance(error, HTTPError):
            return (
                f"the connection to the hub broke while {repo_id} came; {_REACH} and run again: it goes on from there"
            )
        return f"{repo_id} is not in the cache and the hub cannot be reached; {_REACH}, or give a folder"
    status = answer.response.status_code
    if isinstance(answer, GatedRepoError):
        return f"{repo_id} asks for permission: accept its terms on the hub, then `hf auth login` or set HF_TOKEN"
    if isinstance(answer, RepositoryNotFoundError) or status == 404:
        return f"the hub has no {repo_id!r}, or it is private; check the id, or `hf auth login` or set HF_TOKEN"
    if status == 401:
        return f"the hub does not accept the token for {repo_id}; `hf auth login` again, or set HF_TOKEN anew"
    if status == 403:
        return f"the hub refuses {repo_id} to you; ask for access on its page, then `hf auth login` or set HF_TOKEN"
    if status == 429:
        return (
            f"the hub gets too many requests from here to give {repo_id}; wait some minutes, or set HF_TOKEN, or a "
            "mirror by HF_ENDPOINT"
        )
    if status >= 500:
        return f"the hub has a fault ({status}) and did not give {repo_id}; try again later, or a mirror by HF_ENDPOINT"
    return f"the hub did not give {repo_id}: {first_line(answer):.200}; try again later"
