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


def print_run(facts: dict[str, Any], prices: tuple[float, float] | None = None) -> None:
    """The average and the categories, and what a reader must know beside them.

    prices: of a million tokens of prompts and of replies, in whatever currency the user thinks in.
    """
    console = build_console()
    bits = f", {facts['bits']} bits" if facts["bits"] else ""
    dtype = f", {facts['dtype']}" if facts["dtype"] else ""
    title = (
        f"{facts['benchmark']} {facts['split']}, {facts['shots']} shots, protocol {facts['protocol']}: "
        f"{facts['model']}{bits}{dtype}"
    )
    table = Table(box=None, pad_edge=False)
    for name, justify in [("", "left"), ("accuracy, %", "right"), ("± 1 s.e.", "right"), ("questions", "right")]:
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    accuracy = facts["accuracy"]
    rows = [(f"average ({accuracy['average']['kind']})", accuracy["average"]), *accuracy["categories"].items()]
    for name, part in rows:
        table.add_row(Text(name), per_cent(part["value"]), per_cent(part["standard_error"]), f"{part['questions']:,}")
    print_titled(title, table)
    for name, what in [
        ("unextracted", "replies without an answer, counted as wrong"),
        ("too_long", "questions too long to be asked, counted as wrong"),
        ("dropped_demonstrations", "demonstrations left out of prompts that did not fit"),
        ("cut_prompts", "prompts cut at the beginning"),
        ("repeated_options", "questions with an option twice, scored as they are"),
        ("unlabelled", "questions whose answer is not in the data: no score"),
    ]:
        if facts.get(name):
            console.print(f"{facts[name]:,} {what}", soft_wrap=True)
    tokens = facts.get("tokens", {"input": 0})
    if tokens["input"]:
        paid = f", paid for with {sum_prices(tokens, prices):.2f}" if prices is not None else ""
        line = f"{tokens['input']:,} tokens of prompts and {tokens['output']:,} of replies{paid}"
        console.print(line, soft_wrap=True)
    if facts["note"]:
        console.print(Text(f"not comparable with the published table: {facts['note']}"), soft_wrap=True)


def print_widths(first: dict[str, Any], others: Sequence[tuple[dict[str, Any], Comparison]]) -> None:
    """What fewer bits cost: accuracy, its difference to the first width, and the questions that flipped."""
    table = Table(box=None, pad_edge=False)
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
    print_titled(f"{first['benchmark']} by bits a weight", table)


def sum_prices(tokens: dict[str, int], prices: tuple[float, float]) -> float:
    """Of all replies of a run, those of an earlier attempt included: they were paid for once."""
    return (tokens["input"] * prices[0] + tokens["output"] * prices[1]) / 1e6


def print_text(measured: Sequence[dict[str, Any]]) -> None:
    """How well a text was predicted: a row a width and language."""
    table = Table(box=None, pad_edge=False)
    for name in ("bits", "language", "tokens", "bytes", "perplexity", "bits a byte"):
        table.add_column(name, justify="left" if name == "language" else "right")
    for facts in measured:
        for language, loss in facts["languages"].items():
            figures = f"{loss['perplexity']:,.3f}", f"{loss['bits_per_byte']:.4f}"
            table.add_row(str(facts["bits"]), language, f"{loss['tokens']:,}", f"{loss['bytes']:,}", *figures)
    print_titled(f"{measured[0]['text']}: {measured[0]['model']}", table)


def print_positions(measured: Sequence[dict[str, Any]]) -> None:
    """Perplexity by how far into the context a token stands: a column a width."""
    first = measured[0]
    title = f"perplexity by position, windows of {first['window']:,} tokens, trained on {first['trained_context']:,}"
    table = Table(box=None, pad_edge=False)
    for name in ("positions", "tokens", *(f"{facts['bits']} bits" for facts in measured)):
        table.add_column(name, justify="right")
    for row in zip(*(facts["positions"] for facts in measured), strict=True):
        span = f"{row[0]['first']:,} to {row[0]['last']:,}"
        table.add_row(span, f"{row[0]['tokens']:,}", *(f"{bucket['perplexity']:,.3f}" for bucket in row))
    print_titled(title, table)


def print_titled(title: str, table: Table) -> None:
    """A table's own title would be broken to its width."""
    console = build_console()
    console.print(Text(title), soft_wrap=True)
    console.print(table)


def build_console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=1000)


def per_cent(share: float | None) -> str:
    """An unknown figure stays empty."""
    return "" if share is None else f"{100 * share:.2f}"
