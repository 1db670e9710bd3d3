"""An exact `tokenizer.json` from a SentencePiece BPE model.

In: a parsed `tokenizer.model`. Out: the JSON of the `tokenizers` library that gives the same ids for every text, or a
ChuanError that says why none can. What makes the two libraries differ, and how each difference is met:

- sentencepiece merges the best-scored pair, the leftmost of equals; `tokenizers` merges by rank. All splits of a piece
  are listed in the order in which the leftmost one would come first (`_order_splits`).
- sentencepiece cuts out user-defined pieces after the dummy prefix is set and puts no second prefix behind them;
  `tokenizers` would for its "added tokens". So they are isolated by a `Split` over the prefixed text, and
  `ignore_merges` takes each as the whole word that it is.
- `ignore_merges` would also take words that sentencepiece does not: pieces that are not what their own characters merge
  to, control pieces, and the names of byte pieces. A second `Split` breaks these where sentencepiece does.
- A chat begins with a role's piece, which the model was taught without a dummy prefix. `OPENING_MARK` in front of that
  piece, at the very start of a text, takes the prefix away; chat templates write it, and nobody else does.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection
from typing import Any

from sentencepiece import sentencepiece_model_pb2 as spm_pb2

from chuan.errors import ChuanError

_Type = spm_pb2.ModelProto.SentencePiece
_SPACE = "▁"
OPENING_MARK = "\ue000"  # of Unicode's private use: no text has a meaning there


def build_tokenizer_json(proto: spm_pb2.ModelProto, openings: Collection[str] = ()) -> dict[str, Any]:
    """The JSON of a `tokenizers.Tokenizer` that equals the model id for id (sentencepiece's own encoding).

    `openings` are the pieces that, behind an `OPENING_MARK`, may begin a text without a dummy prefix.
    """
    _check_supported(proto)
    vocabulary = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    merges = _build_merges(proto)
    user_defined = sorted(
        (piece.piece for piece in proto.pieces if piece.type == _Type.USER_DEFINED),
        key=lambda piece: (-len(piece), piece),
    )
    unknown = next((piece.piece for piece in proto.pieces if piece.type == _Type.UNKNOWN), None)
    byte_fallback = any(piece.type == _Type.BYTE for piece in proto.pieces)
    pre_tokenizers = []
    if user_defined:
        pre_tokenizers.append(_split("|".join(map(re.escape, user_defined))))
    guards = _build_guards(proto, merges)
    if guards:
        pre_tokenizers.append(_split("|".join(guards)))
    prefix = proto.normalizer_spec.add_dummy_prefix
    normalizers: list[dict[str, Any]] = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
    normalizers.append({"type": "Replace", "pattern": {"String": " "}, "content": _SPACE})
    if prefix and openings:
        alternatives = "|".join(map(re.escape, sorted(openings)))
        pattern = rf"\A{_SPACE}{OPENING_MARK}(?={alternatives})"
        normalizers.append({"type": "Replace", "pattern": {"Regex": pattern}, "content": ""})
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizers} if pre_tokenizers else None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": byte_fallback,
            "ignore_merges": True,
            "vocab": vocabulary,
            "merges": [list(pair) for pair in merges],
        },
    }


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _check_supported(proto: spm_pb2.ModelProto) -> None:
    """Refuses what this conversion would not get exactly right."""
    spec = proto.normalizer_spec
    reason = None
    scores = [piece.score for piece in proto.pieces if piece.type == _Type.NORMAL and len(piece.piece) > 1]
    characters = {piece.piece for piece in proto.pieces if len(piece.piece) == 1}
    if proto.trainer_spec.model_type != spm_pb2.TrainerSpec.BPE:
        reason = "its model is not BPE"
    elif spec.precompiled_charsmap or spec.remove_extra_whitespaces:
        reason = "it normalizes text (its normalizer is not the identity)"
    elif not spec.escape_whitespaces or proto.trainer_spec.treat_whitespace_as_suffix:
        reason = "it marks spaces in another way"
    elif len({piece.piece for piece in proto.pieces}) != len(proto.pieces):
        reason = "it holds a piece twice"
    elif len(set(scores)) != len(scores):
        reason = "two of its pieces have the same score"
    elif any(piece.type == _Type.UNUSED for piece in proto.pieces):
        reason = "it has unused pieces"
    elif any(set(p.piece) - characters for p in proto.pieces if p.type == _Type.NORMAL):
        reason = "a piece holds a character that is no piece"
    if reason:
        raise ChuanError(f"no exact tokenizer.json can be made from tokenizer.model: {reason}; use tokenizer.model")


def _build_merges(proto: spm_pb2.ModelProto) -> list[tuple[str, str]]:
    """Every way to put each piece together from two others, best score first."""
    normal = {piece.piece for piece in proto.pieces if piece.type == _Type.NORMAL}
    merges: list[tuple[str, str]] = []
    for piece in sorted((p for p in proto.pieces if p.type == _Type.NORMAL), key=lambda p: -p.score):
        text = piece.piece
        splits = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        merges.extend(_order_splits([pair for pair in splits if pair[0] in normal and pair[1] in normal]))
    return merges


def _order_splits(splits: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Orders the splits of one piece so that the lower rank is the one further left in a text.

    Two splits compete only where they overlap, in a sequence X Y Z with X + Y = Y + Z; there the left one is (X, Y).
    Where X = Z both orders occur, but only the one with the longer left part can be reached: a run of equal
    parts is paired from the left, so the odd one stands at its end.
    """
    ordered = sorted(splits, key=lambda pair: -len(pair[0]))
    changed = True
    while changed:
        changed = False
        for i in range(len(ordered)):
            for j in range(i + 1, len(ordered)):
                left, right = ordered[j], ordered[i]
                if left[1] == right[0] and left[0] != right[1]:
                    ordered[i], ordered[j] = ordered[j], ordered[i]
                    changed = True
    return ordered


def _build_guards(proto: spm_pb2.ModelProto, merges: list[tuple[str, str]]) -> list[str]:
    """Patterns that break, at their first boundary, words that are pieces but not what sentencepiece makes of them."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    vocabulary = {piece.piece for piece in proto.pieces}
    guards = []
    for piece in proto.pieces:
        word = piece.piece
        if piece.type == _Type.USER_DEFINED or len(word) == 1:
            continue
        parts = _merge(word, ranks)
        if len(parts) == 1:
            continue
        first, rest = parts[0], word[len(parts[0]) :]
        if rest in vocabulary and len(_merge(rest, ranks)) > 1:
            raise ChuanError(
                f"no exact tokenizer.json can be made from this tokenizer.model: {word!r} breaks in a way that the "
                "tokenizers library cannot express; use tokenizer.model"
            )
        guards.append(rf"\A{re.escape(first)}(?={re.escape(rest)}\z)")
    return guards


def _merge(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding of one word, the plain way."""
    parts = list(word)
    while len(parts) > 1:
        pairs = list(itertools.pairwise(parts))
        best = min(range(len(pairs)), key=lambda index: ranks.get(pairs[index], len(ranks)))
        if pairs[best] not in ranks:
            break
        parts[best : best + 2] = ["".join(pairs[best])]
    return parts
