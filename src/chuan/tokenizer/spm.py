"""SentencePiece tokenizers: the `tokenizer.model` of Baichuan and of the first Llamas.

In: the bytes of a model file (or the vocabulary of a GGUF). Out: a `Tokenizer`. The sentencepiece library does the
encoding; what is ours is that control strings stay text.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2 as spm_pb2

from chuan.errors import ChuanError
from chuan.tokenizer.convert import build_tokenizer_json
from chuan.tokenizer.streaming import Piece, PieceTable
from chuan.tokenizer.tokenizer import RESERVED_PIECE, Tokenizer

_Type = spm_pb2.ModelProto.SentencePiece


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model; `control=True` is the library to the id, `control=False` has no control pieces at all."""

    def __init__(self, model_file: bytes, control_ids: Collection[int] = (), add_bos: bool = False) -> None:
        """`control_ids` are ids that only code may place (chat roles), beside the `<reserved_N>` pieces."""
        self.proto = load_model_proto(model_file)
        self._model_file = model_file
        pieces = self.proto.pieces
        reserved = {
            index
            for index, piece in enumerate(pieces)
            if piece.type == _Type.USER_DEFINED and RESERVED_PIECE.fullmatch(piece.piece)
        }
        roles = {index for index in control_ids if 0 <= index < len(pieces) and pieces[index].type != _Type.BYTE}
        reserved |= roles
        self._openings = [pieces[index].piece for index in roles]
        self._control = _build_processor(self.proto)
        plain = spm_pb2.ModelProto()
        plain.CopyFrom(self.proto)
        for index in reserved:
            if pieces[index].type != _Type.UNKNOWN:
                plain.pieces[index].type = _Type.CONTROL  # a control piece is never found in text
        self._plain = _build_processor(plain)
        named = reserved | {i for i, piece in enumerate(pieces) if piece.type in (_Type.CONTROL, _Type.UNKNOWN)}
        self.control_pieces = {pieces[index].piece: index for index in sorted(named)}
        self.table = _build_table(self.proto)
        self.bos_id = _id_or_none(self._control.bos_id())
        self.eos_id = _id_or_none(self._control.eos_id())
        if add_bos and self.bos_id is not None:
            self.prompt_prefix = (self.bos_id,)

    def _encode(self, text: str, control: bool) -> list[int]:
        return (self._control if control else self._plain).encode(text)

    def _encode_batch(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        return self._plain.encode(list(texts), num_threads=threads)

    def build_json(self) -> dict[str, Any]:
        return build_tokenizer_json(self.proto, self._openings)

    def model_file(self) -> bytes:
        return self._model_file


def load_model_proto(model_file: bytes) -> spm_pb2.ModelProto:
    """Parses the bytes of a `tokenizer.model`."""
    proto = spm_pb2.ModelProto()
    try:
        proto.ParseFromString(model_file)
    except DecodeError:
        raise ChuanError("tokenizer.model is not a SentencePiece model, or is cut short; fetch it again") from None
    if not proto.pieces:
        raise ChuanError("tokenizer.model holds no pieces; fetch it again")
    return proto


def build_model_proto(
    pieces: Sequence[str], scores: Sequence[float], types: Sequence[int], add_dummy_prefix: bool
) -> spm_pb2.ModelProto:
    """A SentencePiece BPE model from a vocabulary alone, as a GGUF carries it (types as sentencepiece's)."""
    proto = spm_pb2.ModelProto()
    for piece, score, kind in zip(pieces, scores, types, strict=True):
        proto.pieces.add(piece=piece, score=score, type=kind)
    proto.trainer_spec.model_type = spm_pb2.TrainerSpec.BPE
    proto.trainer_spec.vocab_size = len(pieces)
    proto.trainer_spec.byte_fallback = any(kind == _Type.BYTE for kind in types)
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = add_dummy_prefix
    proto.normalizer_spec.remove_extra_whitespaces = False
    return proto


def _build_processor(proto: spm_pb2.ModelProto) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(proto.SerializeToString())
    except RuntimeError as error:
        raise ChuanError(f"tokenizer.model cannot be used: {str(error).splitlines()[0]}; fetch it again") from None
    return processor


def _build_table(proto: spm_pb2.ModelProto) -> PieceTable:
    table: list[Piece] = []
    for piece in proto.pieces:
        if piece.type == _Type.CONTROL:
            table.append(None)
        elif piece.type == _Type.UNKNOWN:
            table.append(proto.trainer_spec.unk_surface)
        elif piece.type == _Type.BYTE:
            table.append(bytes([int(piece.piece[3:-1], 16)]))
        else:
            table.append(piece.piece.replace("▁", " "))
    spec = proto.normalizer_spec
    strip = spec.add_dummy_prefix or spec.remove_extra_whitespaces
    unknown_id = next((index for index, piece in enumerate(proto.pieces) if piece.type == _Type.UNKNOWN), None)
    return PieceTable(table, "each byte", strip_first_space=strip, unknown_id=unknown_id)


def _id_or_none(token_id: int) -> int | None:
    return token_id if token_id >= 0 else None
