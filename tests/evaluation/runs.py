"""Folders of runs, as an evaluation leaves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def save_run(
    folder: Path,
    model: str = "model",
    benchmark: str = "ceval",
    share: float | None = 0.5,
    kind: str = "macro",
    split: str = "test",
    comparable: bool = True,
    questions: list[dict[str, Any]] | None = None,
) -> Path:
    folder.mkdir(parents=True)
    part = {"value": share, "standard_error": None if share is None else 0.01, "questions": 100, "kind": kind}
    facts = {
        "format": "chuan-run-1",
        "benchmark": benchmark,
        "protocol": "baichuan",
        "mode": "base",
        "split": split,
        "shots": 5,
        "seed": None,
        "model": model,
        "backend": "chuan",
        "bits": 8,
        "dtype": "float32",
        "device": "cpu",
        "data": {"source": "folder", "revision": None, "sha256": "0" * 64},
        "versions": {"chuan": "0.1.0"},
        "date": "2026-01-01",
        "accuracy": {"average": part, "categories": {"STEM": part}, "subjects": {"logic": part, "law": part}},
        "unextracted": 0,
        "dropped_demonstrations": 0,
        "comparable": comparable,
        "note": "",
    }
    (folder / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in questions or [])
    (folder / "questions.jsonl").write_text(lines, encoding="utf-8")
    return folder


def build_question(number: int, correct: bool | None, subject: str = "logic", prompt: str = "p") -> dict[str, Any]:
    return {
        "id": str(number),
        "benchmark": "ceval",
        "subject": subject,
        "category": "STEM",
        "prompt_sha256": prompt,
        "gold": None if correct is None else "A",
        "predicted": "A" if correct else "B",
        "correct": correct,
        "scores": {"A": 2.0 if correct else 0.0, "B": 1.0, "C": 0.0, "D": 0.0},
        "dropped_demonstrations": 0,
    }
