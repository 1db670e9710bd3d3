"""Made-up questions in the layouts of the benchmarks' own files."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

Row = Sequence[str]


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\r\n").writerows(rows)


def write_mmlu(data: Path, subject: str, **splits: Sequence[Row]) -> None:
    """Rows of question, four options, letter."""
    for split, rows in splits.items():
        write_csv(data / f"mmlu/data/{split}/{subject}_{split}.csv", rows)


def write_ceval(data: Path, subject: str, **splits: Sequence[Row]) -> None:
    """Rows as for MMLU, without the letter where the authors keep it; ids and explanations are put in."""
    for split, rows in splits.items():
        header = ["id", "question", "A", "B", "C", "D", "answer", "explanation"][: 8 if split == "dev" else 7]
        if split == "test" and all(len(row) == 5 for row in rows):
            header.pop()
        body = [[str(n), *row, *(["because"] if split == "dev" else [])] for n, row in enumerate(rows)]
        write_csv(data / f"ceval/{split}/{subject}_{split}.csv", [header, *body])


def write_agieval(data: Path, subject: str, rows: Sequence[Row], passage: str | None = None, v1: bool = False) -> None:
    """Rows as for MMLU; the options get their marks."""
    folder = data / ("agieval/microsoft_v1_2023-06/v1" if v1 else "agieval/data/v1_1")
    items = [
        {
            "passage": passage,
            "question": question,
            "options": [f"({mark}){option}" for mark, option in zip("ABCD", options, strict=True)],
            "label": label,
            "answer": None,
            "other": None,
        }
        for question, *options, label in rows
    ]
    _write(folder / f"{subject}.jsonl", "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items))


def write_gaokao(data: Path, subject: str, rows: Sequence[tuple[str, str]]) -> None:
    """Rows of question (with its options) and letter."""
    items = [
        {"year": "2010", "question": question, "answer": [answer], "analysis": "", "index": n, "score": 5}
        for n, (question, answer) in enumerate(rows)
    ]
    content = {"keywords": subject, "example": items}
    _write(data / f"gaokao/Data/Objective_Questions/{subject}.json", json.dumps(content, ensure_ascii=False))


def write_many(data: Path, benchmark: str, subjects: Sequence[str], count: int, labels: bool = True) -> None:
    """`count` questions a subject of MMLU's test or C-Eval's val (its test without labels) and five demonstrations."""
    for number, subject in enumerate(subjects):
        rows = [build_row(subject, 31 * number + n) for n in range(count + 5)]
        if benchmark == "mmlu":
            write_mmlu(data, subject, dev=rows[:5], test=rows[5:])
        elif labels:
            write_ceval(data, subject, dev=rows[:5], val=rows[5:])
        else:
            write_ceval(data, subject, dev=rows[:5], test=[row[:5] for row in rows[5:]])


def build_row(subject: str, seed: int) -> list[str]:
    """A sum of small numbers, with words so that lengths differ."""
    a, b = seed % 7, seed % 5
    wrong = [str(a + b + step) for step in (1, 2, 3)]
    place = seed % 4
    options = [*wrong[:place], str(a + b), *wrong[place:]]
    story = "apples and pears " * (seed % 6)
    return [f"In {subject}, {story}what is {a} + {b}?", *options, "ABCD"[place]]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
