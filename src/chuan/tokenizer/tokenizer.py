"""What every tokenizer of Chuan can do, whatever file it came from.

In: text or ids. Out: ids or text. Knows no chat format and no model.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from chuan.errors import ChuanError
from chuan.tokenizer.streaming import PieceTable, StreamingDecoder

# Baichuan's spare pieces; two of them are the chat roles, so no text may turn into any.
RESERVED_PIECE = re.compile(r"<reserved_\d+>")


class Tokenizer(ABC):
    """Text to ids and back.

    `control_pieces` maps each control string of the vocabulary (`<s>`, `<reserved_102>`, `<|im_start|>` ...) to its id.
    `prompt_prefix` are the ids that the model expects before any prompt (a bos, or nothing).
    """

    table: PieceTable
    control_pieces: Mapping[str, int]
    prompt_prefix: tuple[int, ...] = ()
    bos_id: int | None = None
    eos_id: int | None = None

    @property
    def vocab_size(self) -> int:
        """The number of ids."""
        return len(self.table.pieces)

    def encode(self, text: str, control: bool = False) -> list[int]:
        """Text to ids, with nothing added.

        Control strings in the text are the characters they are, so that no text becomes a control token;
        `control=True` encodes them as the tokenizer's own library does.
        """
        _check_text(text)
        return self._encode(text, control)

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """`encode` of each text, by the library's own threads; a library that counts them itself uses all or one."""
        for text in texts:
            _check_text(text)
        return self._encode_batch(texts, threads)

    def decode(self, token_ids: Iterable[int]) -> str:
        """Ids to text; control tokens (bos, eos, unknown roles' marks) are left out, as the library does."""
        decoder = self.stream()
        parts = []
        for token_id in token_ids:
            if not 0 <= token_id < self.vocab_size:
                raise ChuanError(f"token id {token_id} is outside the vocabulary of {self.vocab_size}")
            parts.append(decoder.push(int(token_id)))
        parts.append(decoder.flush())
        return "".join(parts)

    def stream(self) -> StreamingDecoder:
        """A decoder for ids that come one at a time."""
        return StreamingDecoder(self.table)

    @abstractmethod
    def _encode(self, text: str, control: bool) -> list[int]: ...

    def _encode_batch(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        return [self._encode(text, control=False) for text in texts]

    @abstractmethod
    def build_json(self) -> dict[str, Any]:
        """An exact `tokenizer.json` for other programs; a ChuanError where none can be exact."""

    def model_file(self) -> bytes | None:
        """The `tokenizer.model` of this tokenizer, where it is a SentencePiece one."""
        return None


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ChuanError("the text holds half of a UTF-16 pair; decode it as UTF-16 or remove it") from None
