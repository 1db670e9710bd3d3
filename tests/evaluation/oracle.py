"""The plain way to evaluate: one question, one prompt, one forward pass of transformers' own model.

Written from the description of the protocols `baichuan` and `official` of MMLU and C-Eval; knows nothing of Chuan but
the Chinese names of C-Eval's subjects.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chuan.tasks.ceval import SUBJECTS


@dataclass(frozen=True)
class Answer:
    """What one question came to."""

    prompt: str
    scores: list[float]
    predicted: str
    gold: str | None
    dropped: int

    @property
    def margin(self) -> float:
        """By how much the best letter leads."""
        best, second, *_ = sorted(self.scores, reverse=True)
        return best - second


def ask_one_by_one(
    model: Any, tokenizer: Any, data: Path, benchmark: str, protocol: str, subject: str, split: str, first: int
) -> Iterator[Answer]:
    """The first questions of a subject, five demonstrations before each."""
    folder = data / ("mmlu/data" if benchmark == "mmlu" else "ceval")
    shown = read_rows(folder / "dev" / f"{subject}_dev.csv", benchmark)[:5]
    limit = min(2048, model.config.max_position_embeddings) if benchmark == "mmlu" else None
    letter_ids = [tokenizer(form, add_special_tokens=False).input_ids[-1] for form in letters(benchmark, protocol)]
    bos = [tokenizer.bos_token_id] if protocol == "official" and getattr(tokenizer, "add_bos_token", False) else []
    for row in read_rows(folder / split / f"{subject}_{split}.csv", benchmark)[:first]:
        for kept in range(len(shown), -1, -1):
            prompt = render(benchmark, protocol, subject, shown[:kept], row)
            ids = bos + tokenizer(prompt, add_special_tokens=False).input_ids
            if limit is None or len(ids) <= limit:
                break
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0, -1]
        scores = logits[letter_ids].tolist()
        yield Answer(prompt, scores, "ABCD"[scores.index(max(scores))], row.get("answer"), len(shown) - kept)


def letters(benchmark: str, protocol: str) -> list[str]:
    return [" A", " B", " C", " D"] if (benchmark, protocol) == ("mmlu", "official") else ["A", "B", "C", "D"]


def read_rows(path: Path, benchmark: str) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        names = ["question", "A", "B", "C", "D", "answer"] if benchmark == "mmlu" else None
        rows = list(csv.DictReader(file, names))
    return [{name: cell.replace("\r\n", "\n") for name, cell in row.items()} for row in rows]


def render(benchmark: str, protocol: str, subject: str, shown: list[dict[str, str]], asked: Mapping[str, str]) -> str:
    if benchmark == "mmlu":
        text = f"The following are multiple choice questions (with answers) about  {subject.replace('_', ' ')}.\n\n"
        cue, between = "\nAnswer:", "\n\n"
    else:
        text = f"以下是中国关于{SUBJECTS[subject].title}考试的单项选择题，请选出其中的正确答案。\n\n"
        cue, between = "\n答案：", "\n" if protocol == "baichuan" else "\n\n"
    for row in [*shown, asked]:
        text += row["question"]
        for letter in "ABCD":
            text += f"\n{letter}. {row[letter]}"
        text += cue
        if row is not asked:
            text += (" " if benchmark == "mmlu" else "") + row["answer"] + between
    return text
