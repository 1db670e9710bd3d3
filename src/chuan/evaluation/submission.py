"""The file that the authors of C-Eval score: {"subject": {"0": "A", ...}, ...} for all 52 subjects.

In: rows of a run on the split test. Out: submission.json, or the reason why there can be none. No score is made up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chuan.json_file import save_json
from chuan.staging import staged_file
from chuan.tasks.benchmarks import BENCHMARKS


def describe_submission(rows: Sequence[Mapping[str, Any]]) -> str:
    """What keeps the rows from being a submission; "" for nothing: every subject, its questions 0 to n - 1, A to D."""
    answers = collect_answers(rows)
    missing = [name for name in BENCHMARKS["ceval"].subjects if name not in answers]
    if missing:
        return f"{len(missing)} of 52 subjects are missing, {missing[0]} first"
    for name, letters in answers.items():
        if sorted(letters, key=int) != [str(number) for number in range(len(letters))]:
            return f"the questions of {name} are not numbered from 0 on without gaps"
        unanswered = [number for number, letter in letters.items() if letter not in ("A", "B", "C", "D")]
        if unanswered:
            return f"question {unanswered[0]} of {name} has no letter"
    return ""


def write_submission(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Whole or not there."""
    with staged_file(path) as staged:
        save_json(staged, collect_answers(rows))


def collect_answers(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str | None]]:
    """Letters by subject and id."""
    answers: dict[str, dict[str, str | None]] = {}
    for row in rows:
        answers.setdefault(row["subject"], {})[row["id"]] = row["predicted"]
    return answers
