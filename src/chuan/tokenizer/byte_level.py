"""Byte-level BPE (Radford et al. 2019, GPT-2, section 2.2) from a bare vocabulary, as a GGUF carries it.

In: pieces, their kinds, merges, and the name of the pre-tokenizer. Out: the description of a `tokenizer.json`. Knows no
file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chuan.errors import ChuanError

# The kinds of a token in a GGUF.
CONTROL, USER_DEFINED = 3, 4

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the other 68 for the characters from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def build_byte_level_json(
    pieces: Sequence[str], kinds: Sequence[int], merges: Sequence[str], pre_tokenizer: str
) -> dict[str, Any]:
    """The description of the tokenizer; `pre_tokenizer` is llama.cpp's name for how text is cut into words."""
    splits = _build_splits(pre_tokenizer)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": piece,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kind == CONTROL,
            }
            for index, (piece, kind) in enumerate(zip(pieces, kinds, strict=True))
            if kind in (CONTROL, USER_DEFINED)
        ],
        "normalizer": {"type": "NFC"} if pre_tokenizer == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splits},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre_tokenizer == "llama-bpe",
            "vocab": {piece: index for index, piece in enumerate(pieces)},
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }


def name_pre_tokenizer(description: Mapping[str, Any]) -> str | None:
    """llama.cpp's name for how a `tokenizer.json` cuts text into words, or None where it has none."""
    if (description.get("model") or {}).get("type", "BPE") != "BPE":
        return None
    found = _strip_offsets(description.get("pre_tokenizer"))
    for name in ("gpt-2", "smollm", "llama-bpe", "qwen2"):
        splits = _build_splits(name)
        known = [{"type": "Sequence", "pretokenizers": splits}, *(splits if len(splits) == 1 else [])]
        if any(_strip_offsets(candidate) == found for candidate in known):
            return name
    return None


def _strip_offsets(component: Any) -> Any:
    """A pre-tokenizer without what changes no id."""
    if not isinstance(component, Mapping):
        return component
    kept = {key: value for key, value in component.items() if key != "trim_offsets"}
    if "pretokenizers" in kept:
        kept["pretokenizers"] = [_strip_offsets(inner) for inner in kept["pretokenizers"]]
    return kept


def _build_splits(pre_tokenizer: str) -> list[dict[str, Any]]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    if pre_tokenizer in ("gpt-2", "default"):
        return [byte_level | {"use_regex": True}]
    if pre_tokenizer == "smollm":
        return [{"type": "Digits", "individual_digits": True}, byte_level | {"use_regex": True}]
    patterns = {"llama-bpe": _LLAMA3, "qwen2": _QWEN2}
    if pre_tokenizer not in patterns:
        raise ChuanError(
            f"the GGUF's pre-tokenizer {pre_tokenizer!r} is not supported; use the model's folder with tokenizer.json"
        )
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    return [split | {"pattern": {"Regex": patterns[pre_tokenizer]}}, byte_level | {"use_regex": False}]
