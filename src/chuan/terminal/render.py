"""How answers reach the user: as rendered Markdown on a terminal, as bare text in a pipe.

In: the text of an answer, piece by piece, and its final counts. Out: what stands on stdout (answers) and on stderr
(notes and errors). A model's text is only text: control characters are taken out of it, so that it cannot move the
cursor, change the title or recolour the terminal. Knows no model and no conversation.
"""

from __future__ import annotations

import io
import re
import sys
import time
from typing import TYPE_CHECKING, Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment, SegmentLines
from rich.text import Text

from chuan.terminal.blocks import BlockSplitter

if TYPE_CHECKING:  # the engine brings torch along, and `chuan --help` must not
    from chuan.inference.generation import Increment

# C0 without tab and newline, DEL, C1; and halves of surrogate pairs, which no terminal can be sent.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

# The open block is drawn again at most this often, in seconds: reading needs no more, and a slow terminal is spared.
_REDRAW_INTERVAL = 0.06


class Renderer(Protocol):
    """Shows answers one at a time: begin, write as often as needed, end; notes and errors in between."""

    def begin(self) -> None:
        """An answer is about to come."""

    def write(self, text: str) -> None:
        """The next piece of the answer."""

    def end(self, final: Increment | None, seconds: float) -> None:
        """The answer is over; `final` is its last increment, None where there are no counts to tell."""

    def note(self, line: str) -> None:
        """Something the user should know; not part of an answer."""

    def error(self, line: str) -> None:
        """Something that went wrong."""


class PlainRenderer:
    """Text only, flushed as it comes: for pipes and files."""

    def __init__(self, out: TextIO, notes: TextIO) -> None:
        self._out = out
        self._notes = notes
        self._last = ""

    def begin(self) -> None:
        self._last = ""

    def write(self, text: str) -> None:
        text = clean_text(text)
        if text:
            self._last = text[-1]  # first: Ctrl-C may come as soon as somebody has read the text
            self._out.write(text)
            self._out.flush()

    def end(self, final: Increment | None, seconds: float) -> None:
        # An empty answer is an empty line: a reader can still count the answers. A failed one leaves no line behind.
        if self._last != "\n" and (self._last or final is not None):
            self._out.write("\n")
            self._out.flush()

    def note(self, line: str) -> None:
        self._notes.write(clean_text(line) + "\n")
        self._notes.flush()

    def error(self, line: str) -> None:
        self.note(line)


class RichRenderer:
    """Markdown on a terminal: finished blocks stay as they were printed, only the open one is drawn again."""

    def __init__(self, console: Console, notes: Console) -> None:
        self._console = console
        self._notes = notes
        self._splitter = BlockSplitter()
        self._live: Live | None = None
        self._drawn_at = 0.0
        self._printed = False

    def begin(self) -> None:
        self._splitter = BlockSplitter()
        self._printed = False
        self._drawn_at = 0.0
        self._live = Live(
            SegmentLines([]),
            console=self._console,
            auto_refresh=False,  # no thread: Ctrl-C must find one place to stop
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        self._live.start()

    def write(self, text: str) -> None:
        if self._live is None:
            return
        for block in self._splitter.feed(clean_text(text)):
            self._print_block(self._live, block)
        now = time.monotonic()
        if now - self._drawn_at >= _REDRAW_INTERVAL:
            self._live.update(SegmentLines(self._preview_lines(), new_lines=True), refresh=True)
            self._drawn_at = now

    def end(self, final: Increment | None, seconds: float) -> None:
        if self._live is not None:
            try:
                self._print_block(self._live, self._splitter.finish())
            finally:
                self._live.stop()  # shows the cursor again, come what may
                self._live = None
        if final is not None:
            self._console.print(Text(render_statistics(final, seconds), style="dim"))

    def note(self, line: str) -> None:
        self._notes.print(Text(clean_text(line), style="dim"))

    def error(self, line: str) -> None:
        self._notes.print(Text(clean_text(line), style="red"))

    def _print_block(self, live: Live, block: str) -> None:
        lines = self._render_lines(block)
        with self._console:  # taking the preview away and printing the block is one write: no flicker
            live.update(SegmentLines([]), refresh=True)
            if lines:
                separator: list[list[Segment]] = [[]] if self._printed else []
                self._console.print(SegmentLines(separator + lines, new_lines=True), end="")
                self._printed = True

    def _preview_lines(self) -> list[list[Segment]]:
        width, height = self._console.size
        # A region as high as the screen could not be taken back: two rows are left free.
        height = max(1, height - 2)
        lines = self._render_lines(self._splitter.preview(width, height))
        if self._printed and lines:
            lines = [[], *lines]
        return lines[-height:]

    def _render_lines(self, block: str) -> list[list[Segment]]:
        # Links are written out: what a click would open must be readable.
        markdown = Markdown(block, hyperlinks=False)
        lines = [_strip_padding(line) for line in self._console.render_lines(markdown, pad=False)]
        filled = [index for index, line in enumerate(lines) if line]
        return lines[filled[0] : filled[-1] + 1] if filled else []


def build_renderer() -> Renderer:
    """The renderer for where stdout goes: a terminal or not."""
    terminal = sys.stdout.isatty()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A pipe gets UTF-8 wherever it runs; a terminal its own encoding, and ? for what that cannot say.
        if terminal:
            sys.stdout.reconfigure(errors="replace")
        else:
            sys.stdout.reconfigure(encoding="utf-8")
    if terminal:
        return RichRenderer(Console(highlight=False), Console(stderr=True, highlight=False))
    return PlainRenderer(sys.stdout, sys.stderr)


def clean_text(text: str) -> str:
    """The text without control characters; tabs and newlines stay."""
    return _UNSAFE.sub("", text)


def render_statistics(final: Increment, seconds: float) -> str:
    """`128 tokens · 23.4 tok/s · prompt 57 (41 cached)`; the speed counts the whole answer, its prompt included."""
    parts = [f"{final.completion_tokens} token{'' if final.completion_tokens == 1 else 's'}"]
    if final.finish_reason is None:
        parts.insert(0, "stopped")
    elif final.finish_reason == "length":
        parts.insert(0, "cut at the limit")
    if seconds > 0:
        parts.append(f"{final.completion_tokens / seconds:.1f} tok/s")
    cached = f" ({final.cached_tokens} cached)" if final.cached_tokens else ""
    parts.append(f"prompt {final.prompt_tokens}{cached}")
    return " · ".join(parts)


def _strip_padding(line: list[Segment]) -> list[Segment]:
    """The line without the spaces at its end: who copies an answer does not want them."""
    kept = list(line)
    while kept and not (kept[-1].style and kept[-1].style.bgcolor):
        text = kept[-1].text.rstrip(" ")
        if text:
            kept[-1] = Segment(text, kept[-1].style)
            break
        kept.pop()
    return kept
