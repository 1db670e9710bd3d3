"""A progress bar while a model is read, on stderr, only where somebody watches.

In: a name. Out: a callback that takes (tensors read, of how many).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def loading_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """The bar appears with the first tensor and leaves no trace."""
    console = Console(stderr=True)
    columns = (TextColumn("Loading {task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)
