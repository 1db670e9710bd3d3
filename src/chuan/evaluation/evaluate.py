"""One run: a benchmark asked by a protocol, from the plan to run.json.

In: a plan, a backend, a folder. Out: the facts of the run. What was answered before is not asked again.
"""

from __future__ import annotations

import datetime
import hashlib
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from chuan.evaluation.accuracy import measure_accuracy
from chuan.evaluation.backends.backend import LetterBackend
from chuan.evaluation.prompts import Ask, LetterPrompt, build_prompts, digest_questions, list_subjects, load_asks
from chuan.evaluation.protocols import LetterProtocol, find_protocol
from chuan.evaluation.results import FORMAT, RunFolder
from chuan.evaluation.submission import describe_submission, write_submission
from chuan.tasks.benchmarks import find_benchmark
from chuan.tasks.question import LETTERS

# (questions answered, of how many, rows with a right answer)
Progress = Callable[[int, int, int], None]


@dataclass(frozen=True)
class Plan:
    """What is asked. `seed` is None for the first demonstrations in order; drawn splits take 0 then."""

    benchmark: str
    protocol: str
    split: str
    shots: int
    seed: int | None
    subjects: tuple[str, ...]
    data: Path
    source: str = "folder"
    revision: str | None = None


def build_plan(
    benchmark: str, protocol: str, split: str | None, shots: int, seed: int | None, subjects: str | None, data: Path
) -> Plan:
    """Fills in what was not said. Raises ChuanError for names that there are not."""
    known = find_benchmark(benchmark)
    rules = find_protocol(benchmark, protocol)
    names = list_subjects(benchmark, subjects, rules.drawn)
    seed = seed if seed is not None or not rules.drawn else 0
    return Plan(benchmark, protocol, split or known.splits[-1], shots, seed, tuple(names), data)


def run_plan(plan: Plan, backend: LetterBackend, folder: Path, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Asks what has not been answered yet, and returns the contents of run.json."""
    protocol = find_protocol(plan.benchmark, plan.protocol)
    asks = load_asks(plan.benchmark, plan.data, plan.subjects, plan.split, plan.shots, plan.seed, protocol.drawn)
    described = describe_plan(plan, backend, asks)
    with RunFolder(folder, described) as run:
        if run.finished is not None:
            return run.finished
        if protocol.drawn:
            described |= {"items": list_items(asks)}
        open_asks = [ask for ask in asks if find_key(ask) not in run.rows]
        right = sum(row["correct"] is True for row in run.rows.values())
        progress(len(run.rows), len(asks), right)
        for row in answer_letters(protocol, open_asks, backend):
            run.append(row)
            right += row["correct"] is True
            progress(len(run.rows), len(asks), right)
        order = [find_key(ask) for ask in asks]
        rows = [run.rows[key] for key in order]
        facts = {"format": FORMAT, **described, **summarise(plan, protocol, rows)}
        if plan.benchmark == "ceval" and facts["accuracy"]["average"]["value"] is None:
            problem = describe_submission(rows)
            if problem:
                facts["note"] = f"{facts['note']}; no submission file: {problem}"
            else:
                write_submission(folder / "submission.json", rows)
        run.finish(order, facts)
        return facts


def answer_letters(protocol: LetterProtocol, asks: list[Ask], backend: LetterBackend) -> Iterator[dict[str, Any]]:
    """A row for each question, as the scores come."""
    sent: list[LetterPrompt | None] = []
    unasked: list[LetterPrompt] = []

    def send() -> Iterator[list[int]]:
        for prompt in build_prompts(protocol, asks, backend.encode, backend.context_length):
            if prompt.token_ids is None:
                unasked.append(prompt)
            else:
                sent.append(prompt)
                yield prompt.token_ids

    for number, scores in backend.score_letters(send(), backend.find_letters(protocol.letters)):
        prompt, sent[number] = sent[number], None  # a whole benchmark's ids would be half a gigabyte
        assert prompt is not None
        yield build_row(prompt, scores)
    for prompt in unasked:
        yield build_row(prompt, None)


def build_row(prompt: LetterPrompt, scores: list[float] | None) -> dict[str, Any]:
    """A line of questions.jsonl; the first of equal scores wins, and a prompt that could not be asked is wrong."""
    question = prompt.ask.question
    predicted = LETTERS[scores.index(max(scores))] if scores is not None else None
    gold = question.answer
    row = {
        "id": question.id,
        "benchmark": question.benchmark,
        "subject": question.subject,
        "category": find_benchmark(question.benchmark).subjects[question.subject].category,
        "prompt_sha256": hashlib.sha256(prompt.text.encode("utf-8", "surrogatepass")).hexdigest(),
        "gold": gold,
        "predicted": predicted,
        "correct": None if gold is None else predicted == gold,
        "scores": None if scores is None else dict(zip(LETTERS, scores, strict=False)),
        "dropped_demonstrations": prompt.dropped,
    }
    if prompt.cut:
        row["cut_tokens"] = prompt.cut
    if scores is None:
        row["too_long"] = True
    return row


def find_key(ask: Ask) -> tuple[str, str]:
    return ask.question.subject, ask.question.id


def list_items(asks: list[Ask]) -> dict[str, dict[str, list[str]]]:
    """The ids of a split that was drawn: what was shown and what was asked, by subject."""
    items: dict[str, dict[str, list[str]]] = {}
    for ask in asks:
        of_subject = items.setdefault(
            ask.question.subject, {"demonstrations": [shot.id for shot in ask.demonstrations], "asked": []}
        )
        of_subject["asked"].append(ask.question.id)
    return items


def describe_plan(plan: Plan, backend: LetterBackend, asks: list[Ask]) -> dict[str, Any]:
    """What makes two runs the same run."""
    facts = backend.facts
    return {
        "benchmark": plan.benchmark,
        "protocol": plan.protocol,
        "mode": "base",
        "split": plan.split,
        "shots": plan.shots,
        "seed": plan.seed,
        "subject_names": list(plan.subjects),
        "model": facts.model,
        "backend": facts.backend,
        "bits": facts.bits,
        "dtype": facts.dtype,
        "device": facts.device,
        "parameters": facts.parameters,
        "data": {"source": plan.source, "revision": plan.revision, "sha256": digest_questions(asks)},
    }


def summarise(plan: Plan, protocol: LetterProtocol, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a finished run, and whether they can stand beside the published ones."""
    note = find_difference(plan, protocol, rows)
    return {
        "versions": {
            **{name: version(name) for name in ("chuan", "torch", "transformers")},
            "python": platform.python_version(),
        },
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "accuracy": measure_accuracy(rows, find_benchmark(plan.benchmark).subjects, protocol.average),
        "unextracted": sum(row["predicted"] is None and "too_long" not in row for row in rows),
        "too_long": sum("too_long" in row for row in rows),
        "dropped_demonstrations": sum(row["dropped_demonstrations"] for row in rows),
        "cut_prompts": sum("cut_tokens" in row for row in rows),
        "comparable": not note,
        "note": note,
    }


def find_difference(plan: Plan, protocol: LetterProtocol, rows: list[dict[str, Any]]) -> str:
    """The first reason why the figures are of another kind than the published ones; "" where there is none."""
    if protocol.remark:
        return protocol.remark
    if plan.protocol != "baichuan":
        return f"asked by the protocol {plan.protocol}, the published table by the card's own scripts"
    if plan.split != "test":
        return f"the split is {plan.split}, that of the published table test"
    if plan.shots != 5:
        return f"{plan.shots} shots, the published table has 5"
    missing = len(find_benchmark(plan.benchmark).subjects) - len(plan.subjects)
    if missing:
        return f"{missing} subjects were not asked"
    if any(row["correct"] is None for row in rows):
        return "the answers of this split are not in the data: not scored"
    return ""
