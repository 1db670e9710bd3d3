"""Model folders from the Hugging Face hub, or a mirror of it (HF_ENDPOINT).

In: a hub id. Out: a folder in the hub library's own cache. Only a model's data is fetched: never a `.py`.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from chuan.errors import ChuanError, first_line

_DESCRIPTIONS = [
    "config.json",
    "generation_config.json",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "LICENSE*",
    "README.md",
]
_SAFETENSORS = ["model*.safetensors", "model.safetensors.index.json"]
_PICKLED = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]
_NEVER = ["*.py", "*/*"]


def fetch_from_hub(repo_id: str, revision: str | None = None) -> Path:
    """Downloads, or finds in the cache, what Chuan reads of a model; resumable and offline as the hub library is."""
    try:
        folder = _download(repo_id, revision, [*_DESCRIPTIONS, *_SAFETENSORS])
        if not any(folder.glob("*.safetensors")):
            folder = _download(repo_id, revision, [*_DESCRIPTIONS, *_PICKLED])
    except GatedRepoError:
        raise ChuanError(f"{repo_id} asks for permission: accept its terms on the hub, then `hf auth login`") from None
    except RevisionNotFoundError:
        raise ChuanError(f"{repo_id} has no revision {revision!r}; check the name") from None
    except RepositoryNotFoundError:
        raise ChuanError(
            f"the hub has no model {repo_id!r}, or it is private; check the id, or `hf auth login`"
        ) from None
    except HFValidationError:
        raise ChuanError(f"{repo_id!r:.100} is no hub id (owner/name), and no folder of that name exists") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise ChuanError(
            f"{repo_id} is not in the cache and the hub cannot be reached; check the network, HF_ENDPOINT and "
            "HF_HUB_OFFLINE, or give a folder"
        ) from None
    except HfHubHTTPError as error:
        raise ChuanError(f"the hub did not give {repo_id}: {first_line(error):.200}; try again later") from None
    except OSError as error:
        raise ChuanError(f"{repo_id} could not be stored: {error.strerror or first_line(error):.200}") from None
    return folder


def _download(repo_id: str, revision: str | None, patterns: list[str]) -> Path:
    return Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns, ignore_patterns=_NEVER))
