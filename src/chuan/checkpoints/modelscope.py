"""Model folders from ModelScope, or a mirror of it (MODELSCOPE_ENDPOINT).

In: an id there. Out: a folder in ModelScope's own cache (MODELSCOPE_CACHE). Only a model's data is fetched: never a
`.py`. Its library resumes, and hashes each file before the file gets its name, when it is told the hash; it is, here.
Knows no formats. Importing it takes a third of a second: only who uses ModelScope pays that.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import requests
from modelscope_hub import HubApi, get_default_config
from modelscope_hub.errors import (
    AuthenticationError,
    CacheNotFound,
    FileDownloadError,
    FileIntegrityError,
    HubError,
    NetworkError,
    NotExistError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
)
from modelscope_hub.types import FileInfo

from chuan.checkpoints.hub import (
    DESCRIPTIONS,
    choose_weights,
    is_wanted,
    list_shards,
    list_whole_weights,
    require_space,
)
from chuan.checkpoints.ledger import Ledger
from chuan.errors import ChuanError, first_line

_REACH = "check the network and MODELSCOPE_ENDPOINT"


def fetch_from_modelscope(repo_id: str, revision: str | None = None, weights: bool = True) -> Path:
    """Downloads, or finds in the cache, what Chuan reads of a model; without its weights if they are not wanted.

    A killed download goes on where it stopped. When ModelScope cannot be reached, what is whole in the cache is used.
    """
    with _one_line_errors(repo_id, revision), _quiet():
        api = HubApi()
        cached = _find(api, repo_id, revision, weights)
        if cached is not None and not _is_reachable():
            return cached
        try:
            listing = api.list_repo_files(repo_id, "model", revision=revision, recursive=False)
        except (NetworkError, ServerError):
            if cached is None:
                raise
            return cached
        fetch = _Fetch(api, repo_id, revision, {file.path: file for file in listing if file.type != "tree"})
        fetch.files([name for name in fetch.listing if is_wanted(name, DESCRIPTIONS)])
        if weights:
            fetch.weights()
        return fetch.folder


def find_on_disk(repo_id: str, revision: str | None = None) -> Path | None:
    """The folder in the cache, if it is whole; quick, and never asks ModelScope."""
    with _one_line_errors(repo_id, revision), _quiet():
        return _find(HubApi(), repo_id, revision, weights=True)


class _Fetch:
    """One snapshot; what was hashed before and is as it was then is left alone."""

    def __init__(self, api: HubApi, repo_id: str, revision: str | None, listing: dict[str, FileInfo]) -> None:
        self.listing = listing
        self._api, self._repo_id, self._revision = api, repo_id, revision
        self.folder = self._download([])
        self._ledger = Ledger(self.folder)

    def files(self, names: list[str]) -> None:
        """Those that are not here, or not as ModelScope has them now."""
        wanted = [file for file in map(self.listing.__getitem__, names) if not self._is_here(file)]
        self._download(wanted)
        for file in wanted:
            if file.sha256:
                self._ledger.note(self.folder / file.path, file.sha256)

    def weights(self) -> None:
        """All shards, or the one file; safetensors before bin."""
        names = choose_weights(self.listing, self._repo_id)
        if names[0].endswith(".json"):
            self.files(names)
            names = list_shards(self.folder / names[0], self.listing, self._repo_id)
        here = sum(path.stat().st_size for path in self.folder.iterdir() if path.name.startswith(tuple(names)))
        require_space(self.folder, sum(self.listing[name].size or 0 for name in names) - here, "MODELSCOPE_CACHE")
        self.files(names)

    def _is_here(self, file: FileInfo) -> bool:
        return bool(file.sha256) and self._ledger.knows(self.folder / file.path, file.sha256 or "")

    def _download(self, files: list[FileInfo]) -> Path:
        described = [{"Path": f.path, "Size": f.size, "Sha256": f.sha256, "Type": "blob"} for f in files]
        return Path(self._api.download_repo(self._repo_id, "model", revision=self._revision, file_list=described))


def _find(api: HubApi, repo_id: str, revision: str | None, weights: bool) -> Path | None:
    try:
        folder = Path(api.download_repo(repo_id, "model", revision=revision, local_files_only=True))
    except CacheNotFound:
        return None
    # Old versions of its library keep one folder a model, and do not say of which revision it is.
    if revision is not None and folder.name != revision:
        return None
    whole = (folder / "config.json").is_file() and (not weights or list_whole_weights(folder))
    return folder if whole else None


def _is_reachable() -> bool:
    """The library waits for seven seconds before it gives up; too long for a start without network."""
    try:
        requests.head(str(get_default_config().endpoint), timeout=5)
    except requests.RequestException:
        return False
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Its log lines repeat our error, and its progress bars do not notice that nobody watches."""
    if "MODELSCOPE_LOG_LEVEL" not in os.environ:
        logging.getLogger("modelscope_hub").setLevel(logging.CRITICAL)
    if sys.stderr.isatty():
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


@contextlib.contextmanager
def _one_line_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    try:
        yield
    except FileDownloadError as error:
        name, reason = next(iter(error.failed_files.items()))
        raise ChuanError(_explain(repo_id, revision, name, reason)) from None
    except (HubError, OSError) as error:
        raise ChuanError(_explain(repo_id, revision, "a file", error)) from None


def _explain(repo_id: str, revision: str | None, name: str, error: BaseException) -> str:
    login = "set MODELSCOPE_API_TOKEN to a token from your page there"
    at = "" if revision is None else f" at revision {revision!r}"
    match error:
        case AuthenticationError():
            return f"ModelScope does not accept the token for {repo_id}; {login}, or unset it"
        case PermissionDeniedError():
            return f"ModelScope refuses {repo_id} to you; ask for access on its page, then {login}"
        case NotExistError():
            return (
                f"ModelScope has no model {repo_id!r}{at}, or it is private; check the id (capitals count), or {login}"
            )
        case RateLimitError():
            return f"ModelScope gets too many requests from here to give {repo_id}; wait some minutes, or {login}"
        case ServerError():
            return f"ModelScope has a fault and did not give {repo_id}; try again later, or a mirror ({_REACH})"
        case FileIntegrityError():
            return f"ModelScope sent wrong bytes for {name}; it was removed, try again"
        case NetworkError():
            return f"{repo_id} is not whole in the cache and ModelScope cannot be reached; {_REACH}, then run again"
        case OSError(errno=int()):
            return f"{repo_id} could not be stored: {error.strerror}; make room, or set MODELSCOPE_CACHE"
    return f"ModelScope did not give {repo_id}: {first_line(error):.200}; try again later"
