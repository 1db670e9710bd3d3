"""The leaderboard in words: for a terminal, as Markdown, HTML or JSON.

In: `Board`s. Out: text; a cell without a figure stays empty in all of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from chuan.errors import escape_unprintable
from chuan.evaluation.leaderboard import Board, BoardRow
from chuan.evaluation.page import Bar, render_bars, render_note, render_page, render_table
from chuan.evaluation.published import FOOTNOTES, NOTES, SETTINGS, SOURCE


def print_boards(boards: Sequence[Board]) -> None:
    """Tables on stdout, folded by no line where it is piped."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=1000)
    for board in boards:
        console.print(Text(f"{board.benchmark}: {SETTINGS[board.benchmark]}"), soft_wrap=True)
        table = Table(box=None, pad_edge=False)
        table.add_column("rank", justify="right")
        table.add_column("model", overflow="fold")
        for heading in _header(board)[2:]:
            table.add_column(Text(heading), justify="right", no_wrap=True)
        for row in [*board.rows, *board.apart]:
            table.add_row(*(Text(cell) for cell in _cells(board, row)), style="bold" if row.is_own else None)
        console.print(table)
        for line in _remarks(board):
            console.print(Text(line), soft_wrap=True)
        console.print()
    console.print(Text(f"published figures: {SOURCE}"), soft_wrap=True)


def render_markdown(boards: Sequence[Board]) -> str:
    """A table and its remarks for each board."""
    out = []
    for board in boards:
        header = _header(board)
        out += [f"## {board.benchmark}", "", SETTINGS[board.benchmark], ""]
        out += [_markdown_line(header), "|---:|---|" + "---:|" * (len(header) - 2)]
        out += [_markdown_line(_cells(board, row)) for row in [*board.rows, *board.apart]]
        out += ["", *(f"- {_escape_markdown(line)}" for line in _remarks(board)), ""]
    return "\n".join([*out, f"Published figures: {SOURCE}", ""])


def render_html(boards: Sequence[Board]) -> str:
    """A page with a table and bars for each board."""
    parts = []
    for board in boards:
        rows = [*board.rows, *board.apart]
        column = board.sort if board.sort in board.columns else board.columns[0]
        bars = [
            Bar(_label(row), row.values.get(column), row.errors.get(column), _colour(row))
            for row in rows
            if row.values.get(column) is not None
        ]
        parts += [
            f"<h2>{board.benchmark}</h2>",
            render_note(SETTINGS[board.benchmark]),
            render_table(_header(board), [_cells(board, row) for row in rows], texts=(1,)),
            *(render_note(line) for line in _remarks(board)),
            f"<h3>{board.benchmark}: {column}</h3>",
            render_bars(bars),
        ]
    parts.append(render_note(f"Published figures: {SOURCE}. Blue: your runs; ochre: your runs that are not ranked."))
    return render_page("Leaderboard", parts)


def render_json(boards: Sequence[Board]) -> str:
    """The boards with their settings and footnotes; a figure that is not there is null."""
    tables = [
        asdict(board)
        | {
            "settings": SETTINGS[board.benchmark],
            "footnotes": FOOTNOTES[board.benchmark],
            "note": NOTES.get(board.benchmark),
        }
        for board in boards
    ]
    return json.dumps({"source": SOURCE, "tables": tables}, ensure_ascii=False, indent=2) + "\n"


def _header(board: Board) -> list[str]:
    return ["rank", "model", "10^9 parameters", *board.columns]


def _cells(board: Board, row: BoardRow) -> list[str]:
    size = "" if row.parameters is None else f"{row.parameters:.3g}"
    return [str(row.rank or ""), _label(row), size, *(_figure(board, row, column) for column in board.columns)]


def _figure(board: Board, row: BoardRow, column: str) -> str:
    value, error = row.values.get(column), row.errors.get(column)
    if value is None:
        return ""
    digits = 2 if board.benchmark in ("Gaokao", "AGIEval") else 1  # as the card prints them
    return f"{value:.{digits}f}" + (f" ± {error:.1f}" if error else "")


def _label(row: BoardRow) -> str:
    name = escape_unprintable(row.model)
    if row.printed and row.printed != row.model:
        name += f" [{row.printed}]"
    if row.is_own:
        name += " (yours, not ranked)" if row.why else " (yours)"
    return name + (f" {_mark(row.mark)}" if row.mark else "")


def _mark(mark: str) -> str:
    return mark if mark == "*" else f"({mark})"


def _colour(row: BoardRow) -> str:
    if not row.is_own:
        return "bar"
    return "apart" if row.why else "own"


def _remarks(board: Board) -> list[str]:
    rows = [*board.rows, *board.apart]
    notes = FOOTNOTES[board.benchmark]
    lines = [f"{_mark(mark)} {text}" for mark, text in notes.items() if any(row.mark == mark for row in rows)]
    if any(row.why and not row.is_own for row in rows):
        lines.append("figures from other sources are shown in their place but not ranked")
    if any(row.printed and row.printed != row.model for row in rows):
        lines.append("in square brackets: the name as printed")
    if board.benchmark in NOTES:
        lines.append(NOTES[board.benchmark])
    lines += [f"not ranked, {escape_unprintable(row.model)}: {row.why}" for row in board.apart]
    if any(row.is_own for row in rows):
        lines.append("± is one standard error")
    return lines


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_escape_markdown(cell) for cell in cells) + " |"


def _escape_markdown(text: str) -> str:
    for character in "\\|*_[]<":
        text = text.replace(character, "\\" + character)
    return text
