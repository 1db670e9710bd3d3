"""Tokenizers described by a `tokenizer.json`: byte-level BPE (GPT-2 and after) and BPE with byte fallback (Llama).

In: the parsed JSON. Out: a `Tokenizer`. The `tokenizers` library does the encoding; what is ours is that
control strings stay text, and that decoding streams.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import tokenizers

from chuan.errors import ChuanError, first_line
from chuan.tokenizer.byte_level import byte_of_character
from chuan.tokenizer.streaming import Piece, PieceTable
from chuan.tokenizer.tokenizer import RESERVED_PIECE, Tokenizer

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class JsonTokenizer(Tokenizer):
    """A `tokenizer.json`; special tokens, `<reserved_N>` pieces and `control_ids` are its control pieces."""

    def __init__(
        self,
        description: Mapping[str, Any],
        special: Mapping[str, str] | None = None,
        control_ids: Collection[int] = (),
    ) -> None:
        """`special` names special tokens by role (bos_token, eos_token ...), as `tokenizer_config.json` does."""
        self._description = description
        special = special or {}
        self._backend = _build_backend(description)
        vocabulary: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        marked = {token["content"] for token in description.get("added_tokens") or [] if token.get("special")}
        marked |= {name for name in special.values() if name in vocabulary}
        marked |= {name for name in vocabulary if RESERVED_PIECE.fullmatch(name)}
        marked |= {name for name, index in vocabulary.items() if index in set(control_ids)}
        self.control_pieces = {name: vocabulary[name] for name in sorted(marked, key=lambda name: vocabulary[name])}
        self._plain = _build_backend(_without_control(description, self.control_pieces))
        unknown = description["model"].get("unk_token")
        silent = {name for name in marked if not RESERVED_PIECE.fullmatch(name) and name != unknown}
        self.table = _build_table(description, vocabulary, silent)
        self.bos_id = vocabulary.get(special.get("bos_token", ""))
        self.eos_id = vocabulary.get(special.get("eos_token", ""))
        # What the file's own post-processor puts before a text; an eos behind it is for training, not for prompts.
        around = self._backend.encode("", add_special_tokens=True).ids
        self.prompt_prefix = tuple(index for index in around if index != self.eos_id or index == self.bos_id)

    def _encode(self, text: str, control: bool) -> list[int]:
        backend = self._backend if control else self._plain
        return backend.encode(text, add_special_tokens=False).ids

    def _encode_batch(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        if threads == 1:
            return [self._encode(text, control=False) for text in texts]
        # Its pool has as many threads as RAYON_NUM_THREADS says, or cores.
        return [found.ids for found in self._plain.encode_batch(list(texts), add_special_tokens=False)]

    def build_json(self) -> dict[str, Any]:
        return copy.deepcopy(dict(self._description))


def _build_backend(description: Mapping[str, Any]) -> tokenizers.Tokenizer:
    if not isinstance(description, Mapping) or not isinstance(description.get("model"), Mapping):
        raise ChuanError("tokenizer.json has no model in it; fetch it again")
    if description["model"].get("type", "BPE") != "BPE":
        raise ChuanError(f"tokenizer.json is of type {description['model'].get('type')!r}; only BPE is supported")
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps(description))
    except Exception as error:  # the library raises nothing narrower
        raise ChuanError(f"tokenizer.json cannot be used: {first_line(error)}; fetch it again") from None
    backend.no_truncation()
    backend.no_padding()
    return backend


def _without_control(description: Mapping[str, Any], control: Mapping[str, int]) -> dict[str, Any]:
    """The same tokenizer with its control strings out of reach: no text can be encoded to their ids.

    They keep their ids under names that begin with a space, which no normalized text or byte-level word holds.
    """
    model = dict(description["model"])
    vocabulary: dict[str, int] = dict(model["vocab"])
    changed = dict(description) | {"model": model, "pre_tokenizer": copy.deepcopy(description.get("pre_tokenizer"))}
    model["vocab"] = vocabulary
    kept = [token for token in changed.get("added_tokens") or [] if token["content"] not in control]
    for token in kept:
        # The library numbers added tokens anew; those that are in the vocabulary keep their number.
        vocabulary.setdefault(token["content"], token["id"])
    changed["added_tokens"] = kept
    for name, index in control.items():
        if vocabulary.pop(name, None) is not None:
            vocabulary[f" {index}"] = index
        if model.get("unk_token") == name:
            model["unk_token"] = f" {index}"
    model["merges"] = [merge for merge in model.get("merges") or [] if not _makes_any(merge, control)]
    changed["post_processor"] = None
    for splitter in _walk(changed.get("pre_tokenizer")):
        pattern = splitter.get("pattern") or {}
        if splitter.get("type") == "Split" and "Regex" in pattern:
            alternatives = set(map(re.escape, control))
            parts = re.findall(r"(?:\\.|[^|\\])+", pattern["Regex"], re.DOTALL)
            rest = [part for part in parts if part not in alternatives]
            if len(rest) < len(parts):  # one that matches nothing, where every alternative was a control piece
                pattern["Regex"] = "|".join(rest) if rest else r"(?!)"
    return changed


def _makes_any(merge: str | list[str], control: Mapping[str, int]) -> bool:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return bool({left, right, left + right} & control.keys())


def _walk(component: Any) -> Iterator[dict[str, Any]]:
    """A pre-tokenizer or decoder and all those inside it."""
    if isinstance(component, dict):
        yield component
        for inner in component.get("pretokenizers") or component.get("decoders") or []:
            yield from _walk(inner)


def _build_table(description: Mapping[str, Any], vocabulary: Mapping[str, int], silent: set[str]) -> PieceTable:
    """What each id decodes to, by the kind of decoder that the file names."""
    decoders = list(_walk(description.get("decoder")))
    kinds = {decoder.get("type") for decoder in decoders}
    added = {token["content"] for token in description.get("added_tokens") or []}
    size = max(vocabulary.values(), default=-1) + 1
    table: list[Piece] = [None] * size
    if "ByteLevel" in kinds:
        bytes_of = byte_of_character()
        for name, index in vocabulary.items():
            if name in silent:
                continue
            is_bytes = name not in added and all(character in bytes_of for character in name)
            table[index] = bytes(bytes_of[character] for character in name) if is_bytes else name
        return PieceTable(table, "each part")
    if not kinds & {"ByteFallback", "Metaspace", "Replace"}:
        raise ChuanError("tokenizer.json has a decoder that is not supported; byte-level and byte-fallback BPE are")
    for name, index in vocabulary.items():
        if name in silent:
            continue
        byte = _BYTE_PIECE.fullmatch(name)
        table[index] = bytes([int(byte[1], 16)]) if byte else name.replace("▁", " ")
    unknown = description["model"].get("unk_token")
    if unknown in vocabulary and unknown not in silent:
        table[vocabulary[unknown]] = " ⁇ "
    strips = any(
        (decoder.get("type") == "Strip" and decoder.get("start", 0) > 0)
        or (decoder.get("type") == "Metaspace" and decoder.get("prepend_scheme", "always") != "never")
        for decoder in decoders
    )
    return PieceTable(table, "each byte", strip_first_space=strips, unknown_id=vocabulary.get(unknown or ""))
