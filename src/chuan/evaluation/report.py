"""The report of a run: report.html with plots and report.md, beside run.json.

In: the folder of a run. Out: two files in it, which say what was asked, how it was scored, and how far the figures
could be off. Source of the calibration error: Guo et al. 2017, https://arxiv.org/abs/1706.04599, equation 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from chuan.errors import escape_unprintable
from chuan.evaluation.page import Bar, render_bars, render_note, render_page, render_table
from chuan.evaluation.runs import Run, read_questions, read_run
from chuan.staging import staged_file

_BINS = 10
_FACTS = (
    "benchmark", "protocol", "mode", "split", "shots", "seed", "model", "backend", "bits", "dtype", "device", "data",
    "versions", "date", "unextracted", "too_long", "dropped_demonstrations", "cut_prompts", "repeated_options",
    "unlabelled", "comparable", "note",
)  # fmt: skip


@dataclass(frozen=True)
class Calibration:
    """Bins of (mean probability of the chosen letter, share right, questions), and their mean distance."""

    bins: list[tuple[float, float, int]]
    error: float


def write_report(folder: Path) -> None:
    """Writes report.html and report.md from what the folder holds; replaces those that are there."""
    run = read_run(folder)
    calibration = measure_calibration(read_questions(folder))
    for name, text in [
        ("report.html", render_report_page(run, calibration)),
        ("report.md", render_report(run, calibration)),
    ]:
        with staged_file(folder / name) as path:
            path.write_text(text, encoding="utf-8")


def measure_calibration(questions: Sequence[dict[str, Any]]) -> Calibration | None:
    """How often the chosen letter is right, by its probability among the letters; None where no letters were scored."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(_BINS)]
    for row in questions:
        scores = [score for score in (row.get("scores") or {}).values() if score is not None]
        if not scores or row["correct"] is None:
            continue
        best = max(scores)
        confidence = 1 / sum(math.exp(score - best) for score in scores)
        bins[min(int(confidence * _BINS), _BINS - 1)].append((confidence, row["correct"]))
    total = sum(len(part) for part in bins)
    if not total:
        return None
    points = [
        (sum(confidence for confidence, _ in part) / len(part), sum(right for _, right in part) / len(part), len(part))
        for part in bins
        if part
    ]
    return Calibration(points, sum(abs(right - mean) * count for mean, right, count in points) / total)


def render_report(run: Run, calibration: Calibration | None) -> str:
    """The report as Markdown."""
    lines = [f"# {_title(run)}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_escape(value)} |" for name, value in _facts(run)]
    lines += ["", _headline(run), "", _calibration_line(calibration), ""]
    for heading, rows in _tables(run):
        lines += [f"## {heading}", "", "| | accuracy, % | standard error | questions |", "|---|---:|---:|---:|"]
        lines += ["| " + " | ".join(_escape(cell) for cell in row) + " |" for row in rows] + [""]
    return "\n".join(lines)


def render_report_page(run: Run, calibration: Calibration | None) -> str:
    """The report as a page that loads nothing."""
    parts = [f"<p><strong>{escape(_headline(run))}</strong></p>", render_table(["", ""], _facts(run), texts=(0, 1))]
    for heading, rows in _tables(run):
        accuracies = run.facts["accuracy"][heading]
        bars = [
            Bar(escape_unprintable(name), _per_cent(part["value"]), _per_cent(part.get("standard_error")), "own")
            for name, part in accuracies.items()
        ]
        scored = any(bar.value is not None for bar in bars)
        parts += [
            f"<h2>{heading.capitalize()}</h2>",
            render_bars(bars) if scored else "",
            render_table(["", "accuracy, %", "standard error", "questions"], rows),
        ]
    parts += ["<h2>Calibration</h2>", render_note(_calibration_line(calibration))]
    if calibration is not None:
        parts.append(_calibration_plot(calibration))
    parts.append(render_note("The lines across the bars are 1.96 standard errors to each side."))
    return render_page(_title(run), parts)


def _title(run: Run) -> str:
    return f"{run.facts['benchmark']}: {escape_unprintable(run.name)}"


def _headline(run: Run) -> str:
    average = run.facts["accuracy"]["average"]
    if average["value"] is None:
        return "Not scored: the answers to these questions were not at hand."
    error = average.get("standard_error")
    spread = "" if error is None else f" ± {100 * error:.2f} (one standard error)"
    weighs = {
        "macro": "every one of the subjects weighs the same (macro)",
        "micro": "every one of the questions weighs the same (micro)",
        "points": "a question weighs as many points as it has (points)",
    }[average["kind"]]
    return f"Average {100 * average['value']:.2f} %{spread} on {average['questions']:,} questions; {weighs}."


def _facts(run: Run) -> list[list[str]]:
    """Names and values of run.json, tables flattened."""
    rows = []
    for name in _FACTS:
        value = run.facts.get(name)
        if isinstance(value, dict):
            value = ", ".join(f"{key} {part}" for key, part in value.items() if part is not None)
        if value is not None and value != "":
            shown = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
            rows.append([name.replace("_", " "), escape_unprintable(shown)])
    return rows


def _tables(run: Run) -> list[tuple[str, list[list[str]]]]:
    tables = []
    for heading in ("categories", "subjects"):
        rows = [
            [
                escape_unprintable(name),
                _shown(part["value"]),
                _shown(part.get("standard_error")),
                str(part["questions"]),
            ]
            for name, part in (run.facts["accuracy"].get(heading) or {}).items()
        ]
        if rows:
            tables.append((heading, rows))
    return tables


def _calibration_line(calibration: Calibration | None) -> str:
    if calibration is None:
        return "Calibration: no letters were scored."
    return (
        f"Expected calibration error {100 * calibration.error:.1f} points, in {_BINS} bins of the probability of the "
        "chosen letter among the letters."
    )


def _calibration_plot(calibration: Calibration) -> str:
    """Share right over probability; a circle's area is the number of questions."""
    side, edge = 320, 40
    most = max(count for _, _, count in calibration.bins)
    out = [
        f"<svg viewBox='0 0 {side + 2 * edge} {side + 2 * edge}' width='{side + 2 * edge}' role='img'>",
        f"<path d='M{edge} {edge}V{edge + side}H{edge + side}M{edge} {edge + side}L{edge + side} {edge}' "
        "stroke='var(--ink)' fill='none' opacity='0.5'/>",
    ]
    for mean, right, count in calibration.bins:
        radius = 3 + 13 * math.sqrt(count / most)
        out.append(
            f"<circle cx='{edge + side * mean:.1f}' cy='{edge + side * (1 - right):.1f}' r='{radius:.1f}' "
            f"fill='var(--own)' opacity='0.8'><title>{count} questions: probability {mean:.2f}, right {right:.2f}"
            "</title></circle>"
        )
    for tick in (0.0, 0.5, 1.0):
        out.append(f"<text x='{edge + side * tick}' y='{edge + side + 16}' text-anchor='middle'>{tick}</text>")
        out.append(f"<text x='{edge - 6}' y='{edge + side * (1 - tick) + 4}' text-anchor='end'>{tick}</text>")
    out.append(f"<text x='{edge + side / 2}' y='{2 * edge + side - 6}' text-anchor='middle'>probability</text>")
    out.append(f"<text x='{edge}' y='{edge - 12}'>share right</text></svg>")
    return "".join(out)


def _shown(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _per_cent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _escape(text: str) -> str:
    for character in "\\|*<[":
        text = text.replace(character, "\\" + character)
    return text
