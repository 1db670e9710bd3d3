"""Token ids to text, as they come: only whole characters leave, and never the beginning of a stop string.

In: ids, or pieces of text. Out: text. Knows no vocabulary file: a `PieceTable` says what each id stands for.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

# What an id stands for: text; raw bytes that may be part of a character; or nothing (a control token).
Piece = str | bytes | None


@dataclass(frozen=True)
class PieceTable:
    """What every id decodes to.

    `invalid` says how bytes that are no UTF-8 become U+FFFD: one for each byte (sentencepiece), or one for each maximal
    part of a character (the Unicode standard, section 3.9; byte-level BPE). `strip_first_space` undoes a dummy prefix,
    but for `unknown_id`, whose text is no piece of the original.
    """

    pieces: Sequence[Piece]
    invalid: Literal["each byte", "each part"]
    strip_first_space: bool = False
    unknown_id: int | None = None


class StreamingDecoder:
    """Turns ids into text one at a time; everything pushed, then `flush`, concatenates to the plain decode."""

    def __init__(self, table: PieceTable) -> None:
        self._table = table
        self._pending = b""
        self._at_start = table.strip_first_space

    def push(self, token_id: int) -> str:
        """The text that this id completes, often none yet. Ids past the table (padding rows of a head) are silent."""
        piece = self._table.pieces[token_id] if token_id < len(self._table.pieces) else None
        if isinstance(piece, bytes):
            self._pending += piece
            return self._mark_started(self._take(final=False))
        if piece is None:
            # Left out of the text. To sentencepiece it ends a run of bytes; to byte-level BPE it was never there.
            return self._mark_started(self._take(final=True)) if self._table.invalid == "each byte" else ""
        text = self._take(final=True)
        if self._at_start and not text and piece:
            self._at_start = False
            return piece[1:] if piece.startswith(" ") and token_id != self._table.unknown_id else piece
        return self._mark_started(text + piece)

    def flush(self) -> str:
        """What is left of a character that never became whole, as U+FFFD."""
        return self._mark_started(self._take(final=True))

    def _mark_started(self, text: str) -> str:
        if text:
            self._at_start = False
        return text

    def _take(self, *, final: bool) -> str:
        if not self._pending:
            return ""
        if self._table.invalid == "each part":
            text, used = codecs.utf_8_decode(self._pending, "replace", final)
            self._pending = self._pending[used:]
            return text
        out = []
        while self._pending:
            try:
                text, used = codecs.utf_8_decode(self._pending, "strict", final)
            except UnicodeDecodeError as error:
                text, used = self._pending[: error.start].decode() + "\ufffd", error.start + 1
            out.append(text)
            self._pending = self._pending[used:]
            if not used:
                break
        return "".join(out)


class StopStrings:
    """Holds back text that may be the beginning of a stop string, until it is decided.

    A stop string may begin and end anywhere inside tokens; it is never emitted, nor anything after it.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that is certainly not part of a stop string. Sets `stopped` when one is complete."""
        if not self._stops:
            return text
        if self.stopped:
            return ""
        self._held += text
        found = [index for stop in self._stops if (index := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            out, self._held = self._held[: min(found)], ""
            return out
        keep = max(_overlap(self._held, stop) for stop in self._stops)
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def flush(self) -> str:
        """What was held back and turned out not to be a stop string."""
        out, self._held = self._held, ""
        return out


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
