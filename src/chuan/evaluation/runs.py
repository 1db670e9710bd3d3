"""Reading what an evaluation left: the folder of a run.

In: a folder with run.json and questions.jsonl. Out: their contents, checked as far as readers here rely on them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chuan.errors import ChuanError
from chuan.json_file import read_json

FORMAT = "chuan-run-1"


@dataclass(frozen=True)
class Run:
    """A folder and its run.json."""

    folder: Path
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        """Model and what its weights were."""
        bits = self.facts.get("bits")
        return f"{self.facts['model']}, {bits}-bit" if bits else str(self.facts["model"])


def read_run(folder: Path) -> Run:
    """Raises ChuanError where the folder holds no finished run."""
    facts = read_json(folder / "run.json")
    if facts.get("format") != FORMAT:
        raise ChuanError(f"{folder / 'run.json'} is no run of chuan evaluate; name the folder that it wrote")
    if any(name not in facts for name in ("benchmark", "model", "accuracy")):
        raise ChuanError(f"{folder / 'run.json'} is not complete; evaluate again")
    return Run(folder, facts)


def find_runs(folder: Path) -> list[Run]:
    """Every run in a folder or below it, by path."""
    if not folder.is_dir():
        raise ChuanError(f"{folder} is no folder; name the one that holds your runs")
    return [read_run(path.parent) for path in sorted(folder.rglob("run.json"))]


def read_questions(folder: Path) -> list[dict[str, Any]]:
    """The rows of questions.jsonl in order."""
    path = folder / "questions.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line]
    except OSError as error:
        raise ChuanError(f"{path} cannot be read: {error.strerror}; name the folder of a run") from None
    except ValueError:
        raise ChuanError(f"{path} is damaged; evaluate again, which goes on where it stopped") from None
