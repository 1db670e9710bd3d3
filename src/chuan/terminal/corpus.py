"""What `chuan corpus build` shows: one bar a stage where somebody watches, else one line a stage; then what came of it.

In: a recipe's path and overrides. Out: stderr and stdout; an exit code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from chuan.corpus.build import StageProgress, build_corpus
from chuan.corpus.recipe import load_corpus_recipe
from chuan.units import format_size


def run_corpus_build(path: str, overrides: Sequence[str]) -> int:
    """Builds, and says where the result is."""
    recipe = load_corpus_recipe(path, overrides)
    with stage_bars() as progress:
        report = build_corpus(recipe, progress)
    print(summarise(report))
    print(f"{recipe.output}: report.html shows what left and why")
    return 0


def summarise(report: dict[str, Any]) -> str:
    """Two lines on what came in and what stayed."""
    total = report["total"]
    came, kept, left = total["in"], total["kept"], total["rejected"]
    lines = [
        f"{came['documents']:,} documents ({format_size(came['bytes'])}) came in, {left['documents']:,} left, "
        f"{kept['documents']:,} ({format_size(kept['bytes'])}) stayed"
        + (f"; {total['bad']:,} records could not be read" if total["bad"] else "")
    ]
    if report["shards"] is not None:
        splits = report["shards"]["splits"].items()
        lines.append(", ".join(f"{name}: {split['tokens']:,} tokens" for name, split in splits))
    return "\n".join(lines)


@contextmanager
def stage_bars() -> Iterator[Callable[[StageProgress], None]]:
    """A callback for `build_corpus`."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _LinePerStage(console)
        return
    columns = (
        TextColumn("{task.description:24}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[seen]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: StageProgress) -> None:
            if stage.name not in tasks:
                tasks[stage.name] = bars.add_task(stage.name, total=stage.tasks, seen="")
            bars.update(tasks[stage.name], completed=stage.done, seen=describe(stage))

        yield show


def describe(stage: StageProgress) -> str:
    """What a stage has seen; empty for one that reads no documents."""
    if not stage.documents:
        return ""
    return f"{stage.documents:,} documents, {stage.size / 1e6:,.1f} MB"


class _LinePerStage:
    """A line when a stage is done, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._finished: set[str] = set()

    def __call__(self, stage: StageProgress) -> None:
        if stage.done == stage.tasks and stage.name not in self._finished:
            self._finished.add(stage.name)
            parts = [f"{stage.name}: {stage.tasks} tasks", describe(stage), f"{stage.seconds:.0f} s"]
            self._console.print(
                ", ".join(part for part in parts if part), markup=False, highlight=False, soft_wrap=True
            )
