"""Cuts a stream of Markdown into blocks that can be rendered one after the other.

In: pieces of text, cut anywhere. Out: each block once, as soon as the next one begins, and the last, open one. A block
ends at a blank line outside of a code fence, unless an indented line follows, which belongs to the list above it.
Every piece is looked at once, so a long stream costs no more per piece than a short one. Knows no terminal.
"""

from __future__ import annotations

import re

_FENCE = re.compile(r"\s*(`{3,}(?=[^`]*$)|~{3,})")


class BlockSplitter:
    """Takes pieces of Markdown in, gives finished blocks out."""

    def __init__(self) -> None:
        self._lines: list[str] = []  # the complete lines of the open block
        self._partial = ""
        self._fence: str | None = None  # the marker of the code fence we are in
        self._fence_index = 0  # and the line that opened it
        self._gap = False  # the last complete line is blank, and the block may end here

    def feed(self, text: str) -> list[str]:
        """Takes a piece of text, returns the blocks that it finishes."""
        finished = []
        for index, piece in enumerate(text.split("\n")):
            if index > 0:
                self._end_line()
            if self._gap and piece and not self._partial and not piece[0].isspace():
                finished.append("\n".join(self._lines))
                self._lines, self._gap = [], False
            self._partial += piece
        return finished

    def finish(self) -> str:
        """The open block, at the end of the stream."""
        return "\n".join([*self._lines, self._partial])

    def preview(self, width: int, height: int) -> str:
        """The end of the open block, as much as a screen of this size can show, still in its code fence."""
        start = max(0, len(self._lines) - height)
        lines = [*self._lines[start:], self._partial]
        if self._fence is not None and self._fence_index < start:
            lines.insert(0, self._lines[self._fence_index])
        return "\n".join(line[-width * height :] for line in lines)

    def _end_line(self) -> None:
        line, self._partial = self._partial, ""
        if not line.strip() and self._fence is None:
            self._gap = bool(self._lines)
            if not self._lines:  # blank lines before a block are no part of it
                return
        else:
            self._gap = False
            self._follow_fence(line)
        self._lines.append(line)

    def _follow_fence(self, line: str) -> None:
        marker = _FENCE.match(line)
        if self._fence is None:
            if marker:
                self._fence, self._fence_index = marker[1], len(self._lines)
        elif marker and marker[1].startswith(self._fence) and line.strip() == marker[1]:
            self._fence = None
