"""What `chuan tokenizer train` shows: a bar a step where somebody watches, else a line a step; then the compression.

In: a recipe's path and overrides. Out: stderr and stdout; an exit code.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from chuan.corpus.tokenizer_training import Progress as Listener
from chuan.corpus.tokenizer_training import TokenizerRecipe, Trained, train_tokenizer
from chuan.recipes import load_recipe
from chuan.tokenizer.compression import PUBLISHED_RATES


def run_tokenizer_train(path: str, overrides: Sequence[str]) -> int:
    """Trains, and shows how the tokenizer compares."""
    recipe = load_recipe(path, TokenizerRecipe, overrides)
    with step_bars() as progress:
        trained = train_tokenizer(recipe, progress)
    print_compression(trained, recipe.held_out)
    print(f"{trained.folder}: a tokenizer of {recipe.tokenizer.vocab_size:,} pieces")
    if trained.bad:
        print(f"{trained.bad:,} records could not be read; bad.jsonl there lists them")
    return 0


def print_compression(trained: Trained, held_out: int) -> None:
    """Characters and bytes per token, one row a tokenizer."""
    kinds = list(dict.fromkeys(kind for parts in trained.compression.values() for kind in parts))
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    if not kinds:
        console.print("no document was set aside, so compression was not measured", highlight=False)
        return
    table = Table(
        title=f"Characters (bytes) per token, on one document in {held_out} that was set aside",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("tokenizer", overflow="fold")
    for kind in kinds:
        table.add_column(kind, justify="right")
    for name, parts in trained.compression.items():
        cells = [
            f"{parts[kind].characters_per_token:.3f} ({parts[kind].bytes_per_token:.3f})" if kind in parts else "-"
            for kind in kinds
        ]
        table.add_row(name, *cells)
    console.print(table, highlight=False)
    rates = ", ".join(f"{name} {rate}" for name, rate in PUBLISHED_RATES.items())
    console.print(
        f"published rates, whose unit and text are not stated: {rates}", highlight=False, markup=False, soft_wrap=True
    )


@contextmanager
def step_bars() -> Iterator[Listener]:
    """A callback for `train_tokenizer`."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _LinePerStep(console)
        return
    columns = (
        TextColumn("{task.description:16}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[seen]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def show(step: str, done: int, total: int, seen: str = "") -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total, seen=seen)
            bars.update(tasks[step], completed=done, total=total, seen=seen)

        yield show


class _LinePerStep:
    """A line when a step is done, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began: dict[str, float] = {}
        self._finished: set[str] = set()

    def __call__(self, step: str, done: int, total: int, seen: str = "") -> None:
        began = self._began.setdefault(step, time.monotonic())
        if done == total and step not in self._finished:
            self._finished.add(step)
            parts = [step, seen, f"{time.monotonic() - began:.0f} s"]
            self._console.print(
                ", ".join(part for part in parts if part), markup=False, highlight=False, soft_wrap=True
            )
