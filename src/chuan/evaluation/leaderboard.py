"""The leaderboard: the published tables beside the user's own runs, ranked only where figures can be compared.

In: the published rows, the user's runs, and what to sort and filter by. Out: a `Board` for each benchmark. Knows no
terminal and no file format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from chuan.errors import ChuanError
from chuan.evaluation.published import BENCHMARKS, MEASURED_MARKS, PublishedRow
from chuan.evaluation.runs import Run

_BENCHMARK_OF = {
    "ceval": "C-Eval",
    "mmlu": "MMLU",
    "gaokao": "Gaokao",
    "agieval": "AGIEval",
    "agieval-v1": "AGIEval",
}
_COLUMN_OF = {
    "C-Eval": {
        "Hard": "Avg(Hard)",
        "STEM": "STEM",
        "Social Science": "Social Sciences",
        "Humanities": "Humanities",
        "Other": "Others",
    },
    "MMLU": {
        "humanities": "Humanities",
        "social sciences": "Social Sciences",
        "STEM": "STEM",
        "other": "Other",
    },
}
# The published columns that an own run can stand in, and the kind of their averages.
_COMPARABLE_KIND = {"C-Eval": "macro", "MMLU": "micro"}
_NEVER = {
    "Gaokao": "the published column is of another set of papers whose split was never published",
    "AGIEval": "the published column is of a split that was never published",
}


@dataclass
class BoardRow:
    """A line: per cent by column, None where there is no figure. `why` says what keeps it from being compared."""

    model: str
    values: dict[str, float | None]
    parameters: float | None = None
    printed: str = ""
    mark: str = ""
    errors: dict[str, float | None] = field(default_factory=dict)
    is_own: bool = False
    why: str = ""
    rank: int | None = None


@dataclass
class Board:
    """A table: `rows` are sorted, those that can be compared have ranks; `apart` are own runs that cannot be."""

    benchmark: str
    columns: list[str]
    sort: str
    rows: list[BoardRow]
    apart: list[BoardRow]


def build_boards(
    published: Sequence[PublishedRow],
    runs: Sequence[Run] = (),
    benchmark: str | None = None,
    sort: str = "Average",
    columns: Sequence[str] | None = None,
    min_size: float | None = None,
    max_size: float | None = None,
) -> list[Board]:
    """The tables in the order of the card. `sort` is a column, "size" or "model"; sizes are in units of 1e9.

    A model whose size is not known passes no filter of sizes. Raises ChuanError for names that no table has.
    """
    wanted = [name for name in BENCHMARKS if benchmark is None or _plain(name) == _plain(benchmark)]
    if not wanted:
        raise ChuanError(f"no published table is of {benchmark}; there are {', '.join(BENCHMARKS)}")
    boards = []
    known: list[str] = []
    for name in wanted:
        of_table = [row for row in published if row.benchmark == name]
        table_columns = list(dict.fromkeys(column for row in of_table for column in row.values))
        known += [column for column in table_columns if column not in known]
        shown = [column for column in table_columns if columns is None or _has(columns, column)]
        order = next((column for column in [*table_columns, "size", "model"] if _plain(column) == _plain(sort)), None)
        if not shown or order is None:
            continue  # the column is another table's
        rows = [_published_row(row) for row in of_table]
        rows += [_own_row(run, name) for run in runs if _BENCHMARK_OF.get(run.facts["benchmark"]) == name]
        rows = [row for row in rows if _is_between(row.parameters, min_size, max_size)]
        rows.sort(key=lambda row: _sort_key(row, order))
        ranked = [row for row in rows if not (row.is_own and row.why)]
        _rank(ranked, order if order in table_columns else "Average")
        boards.append(Board(name, shown, order, ranked, [row for row in rows if row.is_own and row.why]))
    if not boards:
        raise ChuanError(f"no table here has that column; there are {', '.join(known)}, and to sort by: size, model")
    return boards


def _published_row(row: PublishedRow) -> BoardRow:
    why = "" if row.mark in MEASURED_MARKS else "from another source"
    return BoardRow(row.model, row.values, row.parameters, row.printed, row.mark, why=why)


def _own_row(run: Run, benchmark: str) -> BoardRow:
    accuracy = run.facts["accuracy"]
    parts = {"Average": accuracy.get("average") or {}}
    for name, column in _COLUMN_OF.get(benchmark, {}).items():
        parts[column] = (accuracy.get("categories") or {}).get(name) or {}
    return BoardRow(
        run.name,
        {column: _per_cent(part.get("value")) for column, part in parts.items()},
        _parameters(run.facts),
        errors={column: _per_cent(part.get("standard_error")) for column, part in parts.items()},
        is_own=True,
        why=_why_not_comparable(run.facts, benchmark),
    )


def _why_not_comparable(facts: dict[str, Any], benchmark: str) -> str:
    if benchmark in _NEVER:
        return _NEVER[benchmark]
    if facts.get("split") != "test":
        return f"asked on the split {facts.get('split')}, the published table on test"
    if facts.get("shots") != 5:
        return f"{facts.get('shots')}-shot, the published table 5-shot"
    average = facts["accuracy"].get("average") or {}
    if average.get("value") is None:
        return "not scored: the answers were not at hand"
    if average.get("kind") != _COMPARABLE_KIND[benchmark]:
        return f"a {average.get('kind')} average, the published one is {_COMPARABLE_KIND[benchmark]}"
    if facts.get("comparable") is not True:
        return str(facts.get("note") or "asked otherwise than the published table")
    return ""


def _rank(rows: Sequence[BoardRow], column: str) -> None:
    """Ranks among what can be compared; equal figures share a rank."""
    figures = {id(row): row.values.get(column) for row in rows if not row.why}
    for row in rows:
        own = figures.get(id(row))
        if own is not None:
            row.rank = 1 + sum(figure is not None and figure > own for figure in figures.values())


def _sort_key(row: BoardRow, order: str) -> tuple[bool, float, str]:
    if order == "model":
        return (False, 0.0, row.model.lower())
    if order == "size":
        return (row.parameters is None, row.parameters or 0.0, row.model.lower())
    value = row.values.get(order)
    return (value is None, -(value or 0.0), row.model.lower())


def _is_between(size: float | None, least: float | None, most: float | None) -> bool:
    if least is None and most is None:
        return True
    return size is not None and (least is None or size >= least) and (most is None or size <= most)


def _parameters(facts: dict[str, Any]) -> float | None:
    count = facts.get("parameters")
    return count / 1e9 if isinstance(count, int | float) else None


def _per_cent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _has(names: Sequence[str], column: str) -> bool:
    return _plain(column) in [_plain(name) for name in names]


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
