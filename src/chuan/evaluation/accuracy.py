"""Shares of right answers with their standard errors, by subject, category and as a whole.

In: rows of a run. Out: the `accuracy` of run.json. A micro average is over questions, a macro average over subjects, an
average of points is what was won of all that could be won.
The standard error takes the questions as a sample of their subject: sqrt(p (1 - p) / (n - 1)) a subject, and for a
macro average the root of the summed squares over the number of subjects. Points are a ratio of two sums over questions:
its error is that of what each question won above the average (the ratio estimator).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from chuan.evaluation.protocols import Kind
from chuan.tasks.question import Subject

Row = Mapping[str, Any]
Part = dict[str, Any]


def measure_accuracy(rows: Sequence[Row], subjects: Mapping[str, Subject], kind: Kind) -> dict[str, Any]:
    """Average, categories (with C-Eval's Hard), levels where there are some, and subjects."""
    by_subject: dict[str, list[Row]] = {}
    for row in rows:
        by_subject.setdefault(row["subject"], []).append(row)
    alone: Kind = "points" if kind == "points" else "micro"
    parts = {name: measure_part([by_subject[name]], alone) for name in subjects if name in by_subject}

    def group(wanted: Mapping[str, bool]) -> Part:
        return measure_part([by_subject[name] for name in by_subject if wanted[name]], kind)

    categories: dict[str, Part] = {}
    for category in dict.fromkeys(subject.category for subject in subjects.values()):
        if any(subjects[name].category == category for name in by_subject):
            categories[category] = group({name: subjects[name].category == category for name in subjects})
    if any(subjects[name].is_hard for name in by_subject):
        categories["Hard"] = group({name: subjects[name].is_hard for name in subjects})
    accuracy = {"average": group(dict.fromkeys(subjects, True)), "categories": categories, "subjects": parts}
    levels = [level for level in dict.fromkeys(s.level for s in subjects.values()) if level]
    if levels:
        accuracy["levels"] = {
            level: group({name: subjects[name].level == level for name in subjects})
            for level in levels
            if any(subjects[name].level == level for name in by_subject)
        }
    return accuracy


def measure_part(groups: Sequence[Sequence[Row]], kind: Kind) -> Part:
    """One figure over the questions of some subjects; without a value where any question has no known answer."""
    questions = sum(len(group) for group in groups)
    part: Part = {"value": None, "standard_error": None, "questions": questions, "kind": kind}
    if not questions or any(row["correct"] is None for group in groups for row in group):
        return part
    if kind == "points":
        part["value"], part["standard_error"] = _measure_points([row for group in groups for row in group])
        return part
    samples = [[bool(row["correct"]) for row in group] for group in groups]
    if kind == "micro":
        samples = [[right for sample in samples for right in sample]]
    part["value"] = sum(sum(sample) / len(sample) for sample in samples) / len(samples)
    if all(len(sample) > 1 for sample in samples):
        variances = [_variance_of_mean(sample) for sample in samples]
        part["standard_error"] = math.sqrt(sum(variances)) / len(samples)
    return part


def _measure_points(rows: Sequence[Row]) -> tuple[float, float | None]:
    """The share of the points, and its standard error where there are two questions or more."""
    count, possible = len(rows), sum(row["possible"] for row in rows)
    share = sum(row["points"] for row in rows) / possible
    if count < 2:
        return share, None
    squares = sum((row["points"] - share * row["possible"]) ** 2 for row in rows)
    return share, math.sqrt(squares * count / (count - 1)) / possible


def _variance_of_mean(sample: Sequence[bool]) -> float:
    share = sum(sample) / len(sample)
    return share * (1 - share) / (len(sample) - 1)
