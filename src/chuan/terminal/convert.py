"""What `chuan convert` shows: a bar while it works, then what was made and how it was checked.

In: the options of the command. Out: an exit code.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from chuan.errors import escape_unprintable
from chuan.inference.convert import convert
from chuan.terminal.tables import print_rows
from chuan.units import format_size


def run_convert(
    source: str, target: str, to: str | None, bits: int | None, gguf_type: str | None, calibrate: str | None = None
) -> int:
    """Converts, with a progress bar on stderr where somebody watches."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
    with Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as bar:
        name = escape_unprintable(Path(target).name)
        task = bar.add_task(f"Writing {name}", total=None)

        def progress(done: int, total: int) -> None:
            # The second half of the steps reads back what the first half wrote.
            verb = "Writing" if done <= total // 2 else "Checking"
            bar.update(task, completed=done, total=total, description=f"{verb} {name}")

        made = convert(source, target, to, bits, gguf_type, progress, calibrate)  # type: ignore[arg-type]
    rows = {"written": str(made.path), "size": format_size(_measure(made.path)), "checked": made.checked}
    if made.origin is not None:
        rows["licence of the weights"] = made.origin.licence
    print_rows(rows)
    return 0


def _measure(path: Path) -> int:
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
