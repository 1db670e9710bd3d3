"""One run: a benchmark asked by a protocol, from the plan to run.json.

In: a plan, a backend, a folder. Out: the facts of the run. What was answered before is not asked again.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from chuan.errors import ChuanError
from chuan.evaluation.accuracy import measure_accuracy
from chuan.evaluation.backends.backend import (
    ChatLetterBackend,
    GenerationOptions,
    LetterBackend,
    PaidBackend,
    Reply,
    find_chat_letters,
)
from chuan.evaluation.exam import ExamProtocol, grade_reply
from chuan.evaluation.extraction import extract_letter
from chuan.evaluation.prompts import (
    Ask,
    Encode,
    LetterPrompt,
    Messages,
    build_prompts,
    digest_questions,
    list_subjects,
    load_asks,
    render_chat,
)
from chuan.evaluation.protocols import LetterProtocol, find_protocol
from chuan.evaluation.results import FORMAT, RunFolder
from chuan.evaluation.submission import describe_submission, write_submission
from chuan.tasks.benchmarks import find_benchmark
from chuan.tasks.question import LETTERS

# A text to continue, or a conversation to answer; letters are read off either.
MODES = ("base", "chat")
# How many the published tables are over, where that is known.
QUESTIONS = {"mmlu": 14042, "ceval": 12342}
# How long a reply may be that is read for its letter.
REPLY_TOKENS = 512
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
    mode: str = "base"


def build_plan(
    benchmark: str,
    protocol: str,
    split: str | None,
    shots: int,
    seed: int | None,
    subjects: str | None,
    data: Path,
    mode: str = "base",
) -> Plan:
    """Fills in what was not said. Raises ChuanError for names that there are not."""
    if mode not in MODES:
        raise ChuanError(f"--mode {mode} is not known; give {' or '.join(MODES)}")
    if shots < 0:
        raise ChuanError(f"--shots {shots} is not possible; give 0 or more")
    if split == "dev":
        raise ChuanError("the split dev is what demonstrations come from; ask for another")
    known = find_benchmark(benchmark)
    rules = find_protocol(benchmark, protocol)
    if isinstance(rules, ExamProtocol):
        shots, seed, mode = 0, None, "chat"  # there is nothing to show, and one way to ask
    names = list_subjects(benchmark, subjects, rules.drawn)
    seed = seed if seed is not None or not rules.drawn else 0
    return Plan(benchmark, protocol, split or known.splits[-1], shots, seed, tuple(names), data, mode=mode)


def load_plan(plan: Plan) -> list[Ask]:
    """Its questions. Raises ChuanError where the data are not what they should be."""
    drawn = find_protocol(plan.benchmark, plan.protocol).drawn
    return load_asks(plan.benchmark, plan.data, plan.subjects, plan.split, plan.shots, plan.seed, drawn)


def run_plan(
    plan: Plan,
    asks: list[Ask],
    backend: LetterBackend | PaidBackend,
    folder: Path,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Asks what of the plan's questions has not been answered yet, and returns the contents of run.json."""
    protocol = find_protocol(plan.benchmark, plan.protocol)
    described = describe_plan(plan, backend, asks)
    with RunFolder(folder, described) as run:
        if run.finished is not None:
            return run.finished
        if protocol.drawn:
            described |= {"items": list_items(asks)}
        open_asks = [ask for ask in asks if find_key(ask) not in run.rows]
        right = sum(row["correct"] is True for row in run.rows.values())
        progress(len(run.rows), len(asks), right)
        if isinstance(protocol, LetterProtocol) and isinstance(backend, LetterBackend):
            answers = answer_letters(protocol, open_asks, backend, plan.mode)
        else:
            answers = answer_replies(protocol, open_asks, backend)
        for row in answers:
            run.append(row)
            right += row["correct"] is True
            progress(len(run.rows), len(asks), right)
        order = [find_key(ask) for ask in asks]
        rows = [run.rows[key] for key in order]
        facts = {"format": FORMAT, **described, **summarise(plan, protocol, rows)}
        facts["versions"] |= backend.facts.versions
        if (plan.benchmark, plan.split) == ("ceval", "test") and facts["accuracy"]["average"]["value"] is None:
            problem = describe_submission(rows)
            if problem:
                facts["note"] = f"{facts['note']}; no submission file: {problem}"
            else:
                write_submission(folder / "submission.json", rows)
        run.finish(order, facts)
        return facts


def answer_letters(
    protocol: LetterProtocol, asks: list[Ask], backend: LetterBackend, mode: str
) -> Iterator[dict[str, Any]]:
    """A row for each question, as the scores come."""
    encode, letter_ids = find_letters(protocol, backend, mode)
    sent: list[LetterPrompt | None] = []
    unasked: list[LetterPrompt] = []

    def send() -> Iterator[list[int]]:
        for prompt in build_prompts(protocol, asks, encode, backend.context_length, mode == "chat"):
            if prompt.token_ids is None:
                unasked.append(prompt)
            else:
                sent.append(prompt)
                yield prompt.token_ids

    for number, scores in backend.score_letters(send(), letter_ids):
        prompt, sent[number] = sent[number], None  # a whole benchmark's ids would be half a gigabyte
        assert prompt is not None
        yield build_row(prompt, scores)
    for prompt in unasked:
        yield build_row(prompt, None)


def answer_replies(
    protocol: LetterProtocol | ExamProtocol, asks: list[Ask], backend: LetterBackend | PaidBackend
) -> Iterator[dict[str, Any]]:
    """A row for each question, as the replies come; one that names no letter, or several, is wrong and counted."""
    prompts = [render_chat(protocol, ask, ask.demonstrations) for ask in asks]
    options = GenerationOptions(REPLY_TOKENS)
    if isinstance(protocol, ExamProtocol):
        options = GenerationOptions(protocol.longest, protocol.temperature)

    def build(number: int, reply: Reply | None) -> dict[str, Any]:
        text = json.dumps(prompts[number], ensure_ascii=False)
        row = build_row(LetterPrompt(asks[number], text, None, 0, 0), None, reply)
        if isinstance(protocol, ExamProtocol):
            row |= grade_reply(asks[number].question, reply.text if reply is not None else "")
        return row

    fitting = find_fitting(backend, prompts)
    for place, reply in ask_all(backend, [prompts[number] for number in fitting], options):
        yield build(fitting[place], reply)
    for number in sorted(set(range(len(prompts))) - set(fitting)):
        yield build(number, None)


def find_fitting(backend: LetterBackend | PaidBackend, prompts: list[Messages]) -> list[int]:
    """The numbers of those that leave room for a reply; an API says itself what it does not take."""
    if not isinstance(backend, ChatLetterBackend):
        return list(range(len(prompts)))
    return [number for number, ids in enumerate(backend.encode_chats(prompts)) if len(ids) < backend.context_length]


def ask_all(
    backend: LetterBackend | PaidBackend, prompts: list[Messages], options: GenerationOptions
) -> Iterator[tuple[int, Reply]]:
    """(number of the prompt, reply); on this machine tokens cost nothing, and are not counted."""
    if isinstance(backend, PaidBackend):
        yield from backend.ask(prompts, options)
        return
    for number, text in backend.generate(prompts, options):
        yield number, Reply(text, 0, 0)


def find_letters(protocol: LetterProtocol, backend: LetterBackend, mode: str) -> tuple[Encode, list[int]]:
    """How prompts become ids, and the ids of the letters after them."""
    if mode == "base":
        return partial(backend.encode, bos=protocol.bos), backend.find_letters(protocol.letters)
    if not isinstance(backend, ChatLetterBackend):
        raise ChuanError(f"letters cannot be read off conversations with {backend.facts.model}; use --mode base")
    return backend.encode_chats, find_chat_letters(backend)


def build_row(prompt: LetterPrompt, scores: list[float] | None, reply: Reply | None = None) -> dict[str, Any]:
    """A line of questions.jsonl; the first of equal scores wins, and a prompt that could not be asked is wrong."""
    question = prompt.ask.question
    predicted = LETTERS[scores.index(max(scores))] if scores is not None else None
    if reply is not None:
        predicted = extract_letter(reply.text)
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
    if reply is not None:
        row |= {"reply": reply.text, "input_tokens": reply.input_tokens, "output_tokens": reply.output_tokens}
    elif scores is None:
        row["too_long"] = True
    if len(set(question.choices)) < len(question.choices):
        row["repeated_options"] = True  # two letters are right, and only one of them counts
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


def describe_plan(plan: Plan, backend: LetterBackend | PaidBackend, asks: list[Ask]) -> dict[str, Any]:
    """What makes two runs the same run."""
    facts = backend.facts
    return {
        "benchmark": plan.benchmark,
        "protocol": plan.protocol,
        "mode": plan.mode,
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
        "weights_sha256": facts.weights_sha256,
        "context_length": getattr(backend, "context_length", None),  # prompts are shortened to it
        "data": {"source": plan.source, "revision": plan.revision, "sha256": digest_questions(asks)},
    }


def summarise(plan: Plan, protocol: LetterProtocol | ExamProtocol, rows: list[dict[str, Any]]) -> dict[str, Any]:
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
        "tokens": {kind: sum(row.get(f"{kind}_tokens", 0) for row in rows) for kind in ("input", "output")},
        "cut_prompts": sum("cut_tokens" in row for row in rows),
        "repeated_options": sum("repeated_options" in row for row in rows),
        "unlabelled": sum(row["gold"] is None for row in rows),
        "comparable": not note,
        "note": note,
    }


def find_difference(plan: Plan, protocol: LetterProtocol | ExamProtocol, rows: list[dict[str, Any]]) -> str:
    """The first reason why the figures are of another kind than the published ones; "" where there is none."""
    if protocol.remark:
        return protocol.remark
    if plan.protocol != "baichuan":
        return f"asked by the protocol {plan.protocol}, the published table by the card's own scripts"
    if plan.mode != "base":
        return "asked as a conversation, the published table by texts to continue"
    if plan.split != "test":
        return f"the split is {plan.split}, that of the published table test"
    if plan.shots != 5:
        return f"{plan.shots} shots, the published table has 5"
    missing = len(find_benchmark(plan.benchmark).subjects) - len(plan.subjects)
    if missing:
        return f"{missing} subjects were not asked"
    expected = QUESTIONS[plan.benchmark]
    if len(rows) != expected:
        return f"{len(rows):,} questions were asked, that split has {expected:,}"
    if any(row["correct"] is None for row in rows):
        return "the answers of this split are not in the data: not scored"
    return ""
