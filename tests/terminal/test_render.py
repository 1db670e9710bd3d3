"""What stands on stdout and stderr."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from chuan.terminal.render import PlainRenderer, RichRenderer, build_renderer, clean_text, render_statistics

from .scripted import Increment

FINAL = Increment("", 57, 41, 128, "stop")


def build_plain() -> tuple[PlainRenderer, io.StringIO, io.StringIO]:
    out, notes = io.StringIO(), io.StringIO()
    return PlainRenderer(out, notes), out, notes


def build_rich(width: int = 80, height: int = 24) -> tuple[RichRenderer, io.StringIO, io.StringIO]:
    out, notes = io.StringIO(), io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, height=height, color_system="standard", _environ={})
    return RichRenderer(console, Console(file=notes, width=width)), out, notes


def strip_codes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_plain_is_the_answer_and_a_newline() -> None:
    renderer, out, notes = build_plain()
    renderer.begin()
    for piece in ["**川", "** [b]", " a\tb"]:
        renderer.write(piece)
        assert out.getvalue().endswith(piece)
    renderer.end(FINAL, 1.0)
    assert out.getvalue() == "**川** [b] a\tb\n"
    assert notes.getvalue() == ""


@pytest.mark.parametrize(
    ("text", "final", "expected"),
    [("a\n", FINAL, "a\n"), ("", FINAL, "\n"), ("", None, ""), ("a", None, "a\n")],
)
def test_plain_ends_its_line_once(text: str, final: Increment | None, expected: str) -> None:
    renderer, out, _ = build_plain()
    renderer.begin()
    renderer.write(text)
    renderer.end(final, 1.0)
    assert out.getvalue() == expected


def test_notes_and_errors_are_not_answers() -> None:
    for renderer, out, notes in (build_plain(), build_rich()):
        renderer.note("a note \x1b[2J[bold]")
        renderer.error("an error")
        assert out.getvalue() == ""
        assert notes.getvalue() == "a note [2J[bold]\nan error\n"


def test_clean_text_takes_controls_only() -> None:
    everything = "".join(map(chr, range(0x00, 0x100)))
    kept = "\t\n" + "".join(map(chr, [*range(0x20, 0x7F), *range(0xA0, 0x100)]))
    assert clean_text(everything) == kept
    assert clean_text("川 \ud800👍") == "川 👍"


@pytest.mark.parametrize(
    "attack",
    ["\x1b]0;owned\x07", "\x1b[2J\x1b[H", "\x9b2J", "&#27;[2J &#13; &#155;2J", "`\x1b[31m`", "[a](\x1b[2Jb)", "\x08\r"],
)
def test_model_text_cannot_control_the_terminal(attack: str) -> None:
    plain, plain_out, _ = build_plain()
    rich, rich_out, _ = build_rich()
    for renderer in (plain, rich):
        renderer.begin()
        for character in f"before {attack} after":
            renderer.write(character)
        renderer.end(None, 1.0)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", plain_out.getvalue())
    # What rich itself may send: colours, and moving within the lines of the open block.
    allowed = re.sub(r"\x1b\[([0-9;]*m|1A|2K|\?25[lh])|\r", "", rich_out.getvalue())
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", allowed)


def test_rich_markup_is_text() -> None:
    renderer, out, _ = build_rich()
    renderer.begin()
    renderer.write("see [red]this[/red] and [/nonsense]")
    renderer.end(None, 1.0)
    assert "see [red]this[/red] and [/nonsense]" in strip_codes(out.getvalue())


def test_links_show_where_they_lead() -> None:
    renderer, out, _ = build_rich()
    renderer.begin()
    renderer.write("[bank](https://example.org/other)")
    renderer.end(None, 1.0)
    assert "https://example.org/other" in strip_codes(out.getvalue())
    assert "\x1b]8" not in out.getvalue()


def test_rich_renders_markdown_and_prints_finished_blocks_once() -> None:
    renderer, out, _ = build_rich()
    renderer.begin()
    renderer.write("some **bold** text\n\n")
    renderer.write("open")
    before = out.getvalue()
    assert "\x1b[1mbold\x1b[0m" in before
    renderer.write(" block")
    renderer.end(FINAL, 2.0)
    after = out.getvalue()[len(before) :]
    assert "bold" not in after
    assert "open block" in strip_codes(after)
    assert "128 tokens" in after
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h") == 1


def test_a_long_stream_costs_no_more_per_piece_than_a_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chuan.terminal.render._REDRAW_INTERVAL", 0.0)  # every piece is drawn
    written = []
    for pieces in (60, 240):
        renderer, out, _ = build_rich(height=10)
        renderer.begin()
        for number in range(pieces):
            renderer.write(f"- item {number}\n" if number % 60 else f"\n\nparagraph {number}\n\n```\ncode\n```\n\n")
        renderer.end(None, 1.0)
        written.append(len(out.getvalue()))
        assert f"item {pieces - 1}" in strip_codes(out.getvalue())
    assert written[1] < 4.5 * written[0]


@pytest.mark.parametrize("width", [1, 5, 20, 300])
def test_any_width(width: int) -> None:
    renderer, out, _ = build_rich(width=width, height=4)
    renderer.begin()
    for piece in [
        "# 标题 heading\n\n",
        "| a | b |\n|---|---|\n| 中文 | x |\n\n",
        "```py\nprint('long line')\n",
        "```\n\n> q",
    ]:
        renderer.write(piece)
    renderer.end(FINAL, 1.0)
    assert out.getvalue()


def test_statistics() -> None:
    assert render_statistics(FINAL, 5.47) == "128 tokens · 23.4 tok/s · prompt 57 (41 cached)"
    assert render_statistics(Increment("", 3, 0, 1, None), 0.0) == "stopped · 1 token · prompt 3"
    assert render_statistics(Increment("", 3, 0, 2, "length"), 1.0).startswith("cut at the limit · 2 tokens")


def test_without_a_terminal_the_renderer_is_plain(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    renderer = build_renderer()
    assert isinstance(renderer, PlainRenderer)
    renderer.begin()
    renderer.write("川")
    renderer.end(FINAL, 1.0)
    assert capsysbinary.readouterr().out == "川\n".encode()
