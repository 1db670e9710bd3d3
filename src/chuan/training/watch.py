"""What people see of a run: a progress line, JSON lines, TensorBoard, and the curves at its end.

In: numbers of a step. Out: files in the run's folder, and the terminal. Only the first rank watches.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from chuan.recipes import Settings
from chuan.staging import staged_file

LOG = "log.jsonl"


class WatchSettings(Settings):
    """How often what is looked at, in steps; 0 is never."""

    log: int = Field(default=10, ge=1)
    validate_every: int = Field(default=250, ge=0)
    validation_rows: int = Field(default=64, ge=1)
    sample_every: int = Field(default=0, ge=0)
    prompts: tuple[str, ...] = ()


class Watcher:
    """The log of a run. A run that goes on from `step` forgets what was logged after it."""

    def __init__(self, folder: Path, step: int, steps: int) -> None:
        self._path = folder / LOG
        kept = [entry for entry in read_log(folder) if entry["step"] <= step]
        with staged_file(self._path) as temporary:
            temporary.write_text("".join(_line(entry) for entry in kept), encoding="utf-8")
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        self._console = Console(stderr=True)
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("train", total=steps, completed=step, numbers="")
        self._bar.start()

    def step(self, step: int) -> None:
        """A step is done."""
        self._bar.update(self._task, completed=step)

    def log(self, step: int, **values: float) -> None:
        """Numbers of a step: into the files, and in short into the terminal."""
        self._file.write(_line({"step": step, **values}))
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        text = "  ".join(_SHORT[name](value) for name, value in values.items() if name in _SHORT)
        self._bar.update(self._task, numbers=text)
        if not self._console.is_terminal:
            self.say(f"step {step}  {text}")

    def sample(self, step: int, prompt: str, text: str) -> None:
        """What the model makes of a prompt."""
        self._file.write(_line({"step": step, "prompt": prompt, "text": text}))
        self._file.flush()
        self._board.add_text(prompt, text, step)
        self.say(f"step {step}  {prompt!r} -> {text!r}")

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._bar.stop()
        self._file.close()
        self._board.close()


_SHORT: Mapping[str, Any] = {
    "loss": "loss {:.3f}".format,
    "validation_bits_per_byte": "validation {:.4f} bits per byte".format,
    "tokens_per_second": "{:,.0f} tokens/s".format,
    "utilisation": "{:.0%} of peak".format,
}


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; one that was cut off by a kill is left out."""
    path = folder / LOG
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


def plot_curves(folder: Path) -> Path:
    """`loss.png`: training loss and validation bits per byte over steps."""
    entries = read_log(folder)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel="step", ylabel="training loss, nats a token")
    _draw(axes, entries, "loss", "tab:blue")
    if any("validation_bits_per_byte" in entry for entry in entries):
        right = axes.twinx()
        right.set_ylabel("validation, bits per byte", color="tab:red")
        _draw(right, entries, "validation_bits_per_byte", "tab:red")
    axes.grid(alpha=0.3)
    path = folder / "loss.png"
    with staged_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return path


def _draw(axes: Any, entries: list[dict[str, Any]], name: str, colour: str) -> None:
    points = [(entry["step"], entry[name]) for entry in entries if name in entry]
    if points:
        axes.plot(*zip(*points, strict=True), color=colour)


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"
