"""What people see of an evaluation: a bar while it runs, tables when it is done.

In: facts of runs. Out: text on a terminal; plain where it is piped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from chuan.evaluation.compare import Comparison
from chuan.evaluation.evaluate import Progress


@contextmanager
def asking_bar(title: str) -> Iterator[Progress]:
    """On stderr, only where somebody watches, with the share that is right so far."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[right]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None, right="")

        def show(answered: int, total: int, right: int) -> None:
            share = f"{100 * right / answered:.1f} % right" if answered and right else ""
            bar.update(task, completed=answered, total=total, right=share)

        yield show


def print_run(facts: dict[str, Any]) -> None:
    """The average and the categories, and what a reader must know beside them."""
    console = build_console()
    bits = f", {facts['bits']} bits" if facts["bits"] else ""
    title = (
        f"{facts['benchmark']} {facts['split']}, {facts['shots']} shots, protocol {facts['protocol']}: "
        f"{facts['model']}{bits}, {facts['dtype']}"
    )
    table = Table(box=None, pad_edge=False)
    for name, justify in [("", "left"), ("accuracy, %", "right"), ("± 1 s.e.", "right"), ("questions", "right")]:
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    accuracy = facts["accuracy"]
    rows = [(f"average ({accuracy['average']['kind']})", accuracy["average"]), *accuracy["categories"].items()]
    for name, part in rows:
        table.add_row(Text(name), per_cent(part["value"]), per_cent(part["standard_error"]), f"{part['questions']:,}")
    console.print(Text(title), soft_wrap=True)
    console.print(table)
    for name, what in [
        ("unextracted", "replies without an answer, counted as wrong"),
        ("too_long", "questions too long to be asked, counted as wrong"),
        ("dropped_demonstrations", "demonstrations left out of prompts that did not fit"),
        ("cut_prompts", "prompts cut at the beginning"),
    ]:
        if facts.get(name):
            console.print(f"{facts[name]:,} {what}", soft_wrap=True)
    if facts["note"]:
        console.print(Text(f"not comparable with the published table: {facts['note']}"), soft_wrap=True)


def print_widths(first: dict[str, Any], others: Sequence[tuple[dict[str, Any], Comparison]]) -> None:
    """What fewer bits cost: accuracy, its difference to the first width, and the questions that flipped."""
    table = Table(box=None, pad_edge=False, title=Text(f"{first['benchmark']} by bits a weight"), title_justify="left")
    for name in ("bits", "accuracy, %", "difference", "95 % of it", "lost", "gained", "McNemar p"):
        table.add_column(name, justify="right")
    average = first["accuracy"]["average"]
    table.add_row(str(first["bits"]), per_cent(average["value"]))
    for facts, comparison in others:
        low, high = comparison.interval
        table.add_row(
            str(facts["bits"]),
            per_cent(facts["accuracy"]["average"]["value"]),
            f"{100 * comparison.difference:+.2f}",
            f"{100 * low:+.2f} to {100 * high:+.2f}",
            str(comparison.only_a),
            str(comparison.only_b),
            f"{comparison.p_value:.3g}",
        )
    build_console().print(table)


def build_console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=1000)


def per_cent(share: float | None) -> str:
    """An unknown figure stays empty."""
    return "" if share is None else f"{100 * share:.2f}"
