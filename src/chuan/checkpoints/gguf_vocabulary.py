"""A tokenizer as a GGUF carries it, and back.

In: a tokenizer, or a header's values. Out: pieces, kinds, scores or merges; or a `Tokenizer`. Knows no tensors.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from chuan.errors import ChuanError
from chuan.tokenizer.byte_level import CONTROL, USER_DEFINED, build_byte_level_json, name_pre_tokenizer
from chuan.tokenizer.json_tokenizer import JsonTokenizer
from chuan.tokenizer.spm import SentencePieceTokenizer, build_model_proto
from chuan.tokenizer.tokenizer import Tokenizer

_NORMAL, _UNUSED = 1, 5  # the kinds are sentencepiece's


class Header(Protocol):
    """The values of a GGUF."""

    path: Path

    def get(self, key: str) -> Any:
        """A value, or None."""
        ...


@dataclass(frozen=True)
class Vocabulary:
    """What llama.cpp needs of a tokenizer: its `model` is "llama" (SentencePiece) or "gpt2" (byte-level BPE)."""

    model: str
    pieces: Sequence[str]
    kinds: Sequence[int]
    scores: Sequence[float] = ()
    merges: Sequence[str] = ()
    pre: str | None = None
    add_bos: bool = False
    add_space_prefix: bool = False
    ids: Mapping[str, int] = field(default_factory=dict)  # bos, eos, unknown, padding

    def padded(self, size: int) -> Vocabulary:
        """With unused pieces up to the rows of an embedding, which llama.cpp wants all named."""
        missing = range(len(self.pieces), size)
        return dataclasses.replace(
            self,
            pieces=[*self.pieces, *(f"[PAD{index}]" for index in missing)],
            kinds=[*self.kinds, *(_UNUSED for _ in missing)],
            scores=[*self.scores, *(-1e4 for _ in missing)] if self.scores else (),
        )


def build_vocabulary(
    tokenizer: Tokenizer, special: Mapping[str, str], control_ids: Collection[int], defaults: Mapping[str, Any]
) -> Vocabulary:
    """The vocabulary of a tokenizer; `control_ids` (chat roles) become control tokens, which no text can produce.

    `defaults` is a model's `generation_config`, which may give special ids that the tokenizer does not name.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        pieces = tokenizer.proto.pieces
        vocabulary = Vocabulary(
            model="llama",
            pieces=[piece.piece for piece in pieces],
            kinds=[CONTROL if index in control_ids else piece.type for index, piece in enumerate(pieces)],
            scores=[piece.score for piece in pieces],
            add_space_prefix=tokenizer.proto.normalizer_spec.add_dummy_prefix,
        )
    else:
        vocabulary = _describe_byte_level(tokenizer, control_ids)
    roles = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    numbers = {piece: index for index, piece in enumerate(vocabulary.pieces)}
    ids = {role: numbers[name] for role, key in roles.items() if (name := special.get(key, "")) in numbers}
    for role, index in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id)):
        if index is not None:
            ids.setdefault(role, index)
    for role, key in (("bos", "bos_token_id"), ("eos", "eos_token_id"), ("padding", "pad_token_id")):
        value = defaults.get(key)
        given = value[0] if isinstance(value, list) and value else value  # llama.cpp has room for one
        if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < len(vocabulary.pieces):
            ids.setdefault(role, given)
    return dataclasses.replace(vocabulary, ids=ids, add_bos=bool(tokenizer.prompt_prefix))


def load_tokenizer(file: Header, special: Mapping[str, str], role_ids: tuple[int, int] | None) -> Tokenizer:
    """The tokenizer of a header. Pieces that were control tokens only because they are `role_ids` are pieces again."""
    model = file.get("tokenizer.ggml.model")
    pieces, kinds = file.get("tokenizer.ggml.tokens"), file.get("tokenizer.ggml.token_type")
    if not isinstance(kinds, list) or len(kinds) != len(pieces):
        raise ChuanError(f"{file.path} gives {len(pieces)} tokens but not as many kinds; fetch it again")
    used = len(kinds)
    while used and kinds[used - 1] == _UNUSED:  # rows of the embedding that no piece names
        used -= 1
    pieces = pieces[:used]
    kinds = [USER_DEFINED if index in (role_ids or ()) else kind for index, kind in enumerate(kinds[:used])]
    add_bos = file.get("tokenizer.ggml.add_bos_token")
    if model == "gpt2":
        merges, pre = file.get("tokenizer.ggml.merges"), file.get("tokenizer.ggml.pre") or "default"
        if not isinstance(merges, list) or not all(isinstance(merge, str) and " " in merge for merge in merges):
            raise ChuanError(f"{file.path} carries no merges for its tokenizer; fetch it again")
        tokenizer: Tokenizer = JsonTokenizer(build_byte_level_json(pieces, kinds, merges, pre), special)
        if add_bos and tokenizer.bos_id is not None:
            tokenizer.prompt_prefix = (tokenizer.bos_id,)
        return tokenizer
    if model == "llama":
        scores = file.get("tokenizer.ggml.scores")
        if not isinstance(scores, list) or len(scores) < used or not all(map(_is_score, scores)):
            raise ChuanError(f"{file.path} carries no scores for its tokenizer; fetch it again")
        prefix = file.get("tokenizer.ggml.add_space_prefix")
        proto = build_model_proto(pieces, scores[:used], kinds, add_dummy_prefix=prefix is not False)
        return SentencePieceTokenizer(proto.SerializeToString(), role_ids or (), add_bos=add_bos is not False)
    raise ChuanError(f"{file.path} carries a tokenizer of type {model!r:.40}; gpt2 and llama are supported")


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _describe_byte_level(tokenizer: Tokenizer, control_ids: Collection[int]) -> Vocabulary:
    description = tokenizer.build_json()
    pre = name_pre_tokenizer(description)
    if pre is None:
        raise ChuanError(
            "this tokenizer.json is of no kind that llama.cpp has a name for, so it cannot go into a GGUF; write a "
            "Llama folder and convert that with llama.cpp's own program"
        )
    names: dict[int, str] = {index: piece for piece, index in description["model"]["vocab"].items()}
    kinds = dict.fromkeys(names, _NORMAL)
    for token in description.get("added_tokens") or []:
        names[token["id"]] = token["content"]
        kinds[token["id"]] = CONTROL if token.get("special") or token["id"] in control_ids else USER_DEFINED
    if sorted(names) != list(range(len(names))):
        raise ChuanError("the ids of tokenizer.json have gaps, so it cannot go into a GGUF; write a Llama folder")
    merges = description["model"]["merges"]
    return Vocabulary(
        model="gpt2",
        pieces=[names[index] for index in range(len(names))],
        kinds=[kinds[index] for index in range(len(names))],
        merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
        pre=pre,
    )
