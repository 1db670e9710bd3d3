"""A tokenizer as files: read from a `tokenizer.model`, a `tokenizer.json` or a folder of them, and written to one.

In: a path. Out: a `Tokenizer`; or a tokenizer, and its files in a folder. Knows no weights and no `config.json`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chuan.errors import ChuanError
from chuan.json_file import read_json, read_json_if_there, save_json
from chuan.tokenizer.json_tokenizer import JsonTokenizer
from chuan.tokenizer.spm import SentencePieceTokenizer
from chuan.tokenizer.tokenizer import Tokenizer

_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
_ROLES = ("user_token_id", "assistant_token_id")


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """A folder's `tokenizer.model` goes before its `tokenizer.json`; the roles' ids are in `generation_config.json`.

    Raises ChuanError where nothing of the kind is there, or it cannot be read.
    """
    path = Path(path).expanduser()
    if path.suffix == ".json" and path.is_file():
        return JsonTokenizer(read_json(path))
    if path.is_file():
        return SentencePieceTokenizer(_read_bytes(path))
    roles = read_json_if_there(path / "generation_config.json")
    control_ids = tuple(roles[key] for key in _ROLES if isinstance(roles.get(key), int))
    return load_folder_tokenizer(path, read_special_tokens(path), control_ids)


def load_folder_tokenizer(
    folder: Path,
    special: Mapping[str, str],
    control_ids: tuple[int, ...],
    vocab_size: int | None = None,
    add_bos: bool = False,
    prefer_model: bool = True,
) -> Tokenizer:
    """The tokenizer of a folder: its `tokenizer.model` if that is preferred or alone, else its `tokenizer.json`.

    `add_bos` is for a `tokenizer.model` of which `tokenizer_config.json` says nothing. Added tokens from `vocab_size`
    on (`<pad>` in published folders) are ignored: their ids crash a model. Raises ChuanError as `load_tokenizer`.
    """
    model_file, json_file = folder / "tokenizer.model", folder / "tokenizer.json"
    if model_file.is_file() and (prefer_model or not json_file.is_file()):
        says = read_json_if_there(folder / "tokenizer_config.json").get("add_bos_token")
        add_bos = says if isinstance(says, bool) else add_bos
        return SentencePieceTokenizer(_read_bytes(model_file), control_ids, add_bos=add_bos)
    if json_file.is_file():
        description = read_json(json_file)
        added = description.get("added_tokens")
        if isinstance(added, list) and vocab_size is not None:
            description["added_tokens"] = [
                t for t in added if isinstance(t, dict) and isinstance(t.get("id"), int) and t["id"] < vocab_size
            ]
        return JsonTokenizer(description, special, control_ids)
    raise ChuanError(
        f"{folder} has no tokenizer: neither tokenizer.model nor tokenizer.json; check the path, or fetch it again"
    )


def read_special_tokens(folder: Path) -> dict[str, str]:
    """Special tokens by role; a token is a string or a table with its content."""
    described = read_json_if_there(folder / "special_tokens_map.json")
    described |= read_json_if_there(folder / "tokenizer_config.json")
    tokens = {role: described.get(role) for role in _SPECIAL}
    contents = {role: t.get("content") if isinstance(t, Mapping) else t for role, t in tokens.items()}
    return {role: content for role, content in contents.items() if isinstance(content, str)}


def save_tokenizer(folder: Path, tokenizer: Tokenizer, special: Mapping[str, str]) -> None:
    """Writes `tokenizer.model` where there is one, an exact `tokenizer.json` where one can be made, and their table.

    `special` names special tokens by role (bos_token, eos_token ...); what the tokenizer knows itself is added.
    """
    model_file = tokenizer.model_file()
    if model_file is not None:
        (folder / "tokenizer.model").write_bytes(model_file)
    try:
        description = tokenizer.build_json()
        if tokenizer.prompt_prefix and description.get("post_processor") is None:
            description["post_processor"] = _describe_prefix(tokenizer)
        save_json(folder / "tokenizer.json", description)
    except ChuanError:
        # No exact one exists; tokenizer.model is then the one truth, and a wrong tokenizer.json would shadow it.
        if model_file is None:
            raise
    names = dict(special)
    for role, token_id in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id)):
        by_id = {index: name for name, index in tokenizer.control_pieces.items()}
        if token_id in by_id:
            names.setdefault(role, by_id[token_id])
    table = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bool(tokenizer.prompt_prefix),
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    save_json(folder / "tokenizer_config.json", table | names)


def _describe_prefix(tokenizer: Tokenizer) -> dict[str, Any]:
    """The post-processor of a `tokenizer.json` that puts the prompt's prefix (a bos) in front of a text."""
    names = {index: name for name, index in tokenizer.control_pieces.items()}
    prefix = {names[index]: index for index in tokenizer.prompt_prefix}
    before = [{"SpecialToken": {"id": name, "type_id": 0}} for name in prefix]
    first, second = ({"Sequence": {"id": name, "type_id": type_id}} for type_id, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [*before, first],
        "pair": [*before, first, second],
        "special_tokens": {name: {"id": name, "ids": [index], "tokens": [name]} for name, index in prefix.items()},
    }


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ChuanError(f"{path} cannot be read: {error.strerror}; check the path") from None
