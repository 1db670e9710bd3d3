"""What `chuan convert` and `chuan merge` show: a bar while they work, then what was made and how it was checked.

In: the options of the command. Out: an exit code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from chuan.checkpoints.checkpoint import Progress
from chuan.errors import escape_unprintable
from chuan.inference.convert import Conversion, convert
from chuan.inference.merge import merge
from chuan.terminal.tables import print_rows
from chuan.units import format_size


def run_convert(
    source: str, target: str, to: str | None, bits: int | None, gguf_type: str | None, calibrate: str | None = None
) -> int:
    """`chuan convert`."""
    with _writing_bar(target) as progress:
        made = convert(source, target, to, bits, gguf_type, progress, calibrate)  # type: ignore[arg-type]
    return _print_made(made)


def run_merge(adapter: str, target: str, base: str | None, bits: int | None, unmerge: bool) -> int:
    """`chuan merge`."""
    with _writing_bar(target) as progress:
        made = merge(adapter, target, base, bits, unmerge, progress)
    return _print_made(made)


@contextmanager
def _writing_bar(target: str) -> Iterator[Progress]:
    """A bar on stderr where somebody watches; yields what hears of the steps."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
    with Bar(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as bar:
        name = escape_unprintable(Path(target).name)
        task = bar.add_task(f"Writing {name}", total=None)

        def progress(done: int, total: int) -> None:
            # The second half of the steps reads back what the first half wrote.
            verb = "Writing" if done <= total // 2 else "Checking"
            bar.update(task, completed=done, total=total, description=f"{verb} {name}")

        yield progress


def _print_made(made: Conversion) -> int:
    rows = {"written": str(made.path), "size": format_size(_measure(made.path)), "checked": made.checked}
    if made.origin is not None:
        rows["licence of the weights"] = made.origin.licence
    print_rows(rows)
    return 0


def _measure(path: Path) -> int:
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
