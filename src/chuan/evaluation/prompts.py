"""Which questions are asked, with which demonstrations, and the prompts that come of it.

In: a protocol, the folder of the data, and what the user chose. Out: `Ask`s, one a question. Knows no model but through
`encode`.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chuan.errors import ChuanError
from chuan.evaluation.exam import ExamProtocol
from chuan.evaluation.protocols import LetterProtocol
from chuan.tasks.benchmarks import find_benchmark, load_questions
from chuan.tasks.question import Question, Subject

Messages = list[dict[str, str]]
Encode = Callable[[Sequence[Any]], list[list[int]]]  # of texts, or of conversations where those are what is asked
# How many prompts are encoded together.
_BATCH = 64


@dataclass(frozen=True)
class Ask:
    """A question and the demonstrations before it, in order."""

    question: Question
    demonstrations: tuple[Question, ...]


@dataclass(frozen=True)
class LetterPrompt:
    """A prompt ready to be scored. `dropped` demonstrations were left out, `cut` tokens taken off its beginning.

    `text` is what was rendered, a conversation as JSON. `token_ids` are None where the question alone is too long: it
    cannot be asked.
    """

    ask: Ask
    text: str
    token_ids: list[int] | None
    dropped: int
    cut: int


def load_asks(
    benchmark: str, data: Path, subjects: Sequence[str], split: str, shots: int, seed: int | None, drawn: bool
) -> list[Ask]:
    """The questions in the order of the files, subject by subject, each with its demonstrations.

    Those are the first `shots` of the split dev, or with a seed as many of them drawn anew for every question, as the
    published scripts did without one. With `drawn` there is no such split: the seed draws them from the questions that
    letters can score, and the rest is asked. Raises ChuanError where data are missing or cannot be what they should.
    """
    asks: list[Ask] = []
    for subject in subjects:
        try:
            questions = load_questions(benchmark, data, [subject], split)
            pool = load_questions(benchmark, data, [subject], "dev") if shots and not drawn else []
        except ChuanError as error:
            raise ChuanError(f"{error}, or leave {subject} out by --subjects") from None
        _check_questions(benchmark, subject, questions, pool)
        if drawn:
            asks += _draw_split([q for q in questions if q.is_four_choice and q.answer], subject, shots, seed or 0)
            continue
        if len(pool) < shots:
            raise ChuanError(f"{benchmark} has {len(pool)} demonstrations for {subject}; ask for --shots {len(pool)}")
        for question in questions:
            asks.append(Ask(question, tuple(_choose_shots(pool, shots, seed, question))))
    if not asks:
        raise ChuanError(f"{benchmark} has no question that letters can score in {', '.join(subjects)}")
    return asks


def list_subjects(benchmark: str, names: str | None, drawn: bool) -> list[str]:
    """The subjects of a comma-separated wish; all by default, but for those that repeat others or have no letters."""
    known = find_benchmark(benchmark).subjects
    if names is not None:
        wanted = [name.strip() for name in names.split(",") if name.strip()]
        if not wanted:
            raise ChuanError("--subjects names none; leave it out for all")
        for name in wanted:
            if name not in known:
                raise ChuanError(f"{benchmark} has no subject {name}; it has {', '.join(known)}")
        return list(dict.fromkeys(wanted))
    return [name for name in known if not drawn or _can_draw(benchmark, name)]


def build_prompts(
    protocol: LetterProtocol, asks: Iterable[Ask], encode: Encode, context_length: int, as_chat: bool = False
) -> Iterator[LetterPrompt]:
    """The prompts in order, shortened as the protocol says where they do not fit; a conversation loses whole turns."""
    limit = min(protocol.limit or context_length, context_length)
    waiting = iter(asks)
    while batch := [ask for _, ask in zip(range(_BATCH), waiting, strict=False)]:
        prompts = [render_prompt(protocol, ask, ask.demonstrations, as_chat) for ask in batch]
        for ask, prompt, ids in zip(batch, prompts, encode(prompts), strict=True):
            yield _fit(protocol, ask, prompt, ids, encode, limit, as_chat)


def render_prompt(
    protocol: LetterProtocol, ask: Ask, demonstrations: Sequence[Question], as_chat: bool
) -> str | Messages:
    """A text to continue, or a conversation to answer."""
    if as_chat:
        return render_chat(protocol, ask, demonstrations)
    return protocol.render(find_subject(ask.question), demonstrations, ask.question)


def render_chat(protocol: LetterProtocol | ExamProtocol, ask: Ask, demonstrations: Sequence[Question]) -> Messages:
    """A conversation to answer."""
    return protocol.render_messages(find_subject(ask.question), demonstrations, ask.question)


def find_subject(question: Question) -> Subject:
    return find_benchmark(question.benchmark).subjects[question.subject]


def digest_questions(asks: Sequence[Ask]) -> str:
    """A SHA-256 over all that was read, demonstrations included: the same data, whatever files they came in."""
    digest = hashlib.sha256()
    seen: set[Question] = set()
    for ask in asks:
        for question in (*ask.demonstrations, ask.question):
            if question not in seen:
                seen.add(question)
                digest.update(json.dumps(asdict(question), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _fit(
    protocol: LetterProtocol,
    ask: Ask,
    prompt: str | Messages,
    ids: list[int],
    encode: Encode,
    limit: int,
    as_chat: bool,
) -> LetterPrompt:
    if protocol.overflow == "cut the beginning" and not as_chat:
        cut = max(0, len(ids) - limit)
        return LetterPrompt(ask, _describe(prompt), ids[cut:], 0, cut)
    shots = list(ask.demonstrations)
    while len(ids) > limit and shots:
        shots.pop()
        prompt = render_prompt(protocol, ask, shots, as_chat)
        (ids,) = encode([prompt])
    dropped = len(ask.demonstrations) - len(shots)
    return LetterPrompt(ask, _describe(prompt), ids if len(ids) <= limit else None, dropped, 0)


def _describe(prompt: str | Messages) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)


def _check_questions(benchmark: str, subject: str, questions: Sequence[Question], pool: Sequence[Question]) -> None:
    """Answers are kept by id, so ids must differ; and a demonstration without an answer demonstrates nothing."""
    ids = [question.id for question in questions]
    if len(set(ids)) < len(ids):
        twice = next(id_ for id_ in ids if ids.count(id_) > 1)
        raise ChuanError(f"{benchmark} has two questions {twice} in {subject}; fetch its file again")
    for shot in pool:
        if shot.answer is None:
            raise ChuanError(f"demonstration {shot.id} of {benchmark}'s {subject} has no answer; fetch its file again")


def _choose_shots(pool: Sequence[Question], shots: int, seed: int | None, question: Question) -> Sequence[Question]:
    if seed is None:
        return pool[:shots]
    return random.Random(f"{seed} {question.subject} {question.id}").sample(pool, shots)


def _draw_split(questions: Sequence[Question], subject: str, shots: int, seed: int) -> list[Ask]:
    if len(questions) <= shots:
        return []
    chosen = set(random.Random(f"{seed} {subject}").sample(range(len(questions)), shots))
    demonstrations = tuple(questions[number] for number in sorted(chosen))
    return [Ask(question, demonstrations) for number, question in enumerate(questions) if number not in chosen]


def _can_draw(benchmark: str, name: str) -> bool:
    subject = find_benchmark(benchmark).subjects[name]
    if benchmark == "gaokao":
        return subject.category == "single_choice"
    # Its questions are those of sat-en; the others have five options, or none.
    return name not in (
        "sat-en-without-passage",
        "aqua-rat",
        "lsat-ar",
        "lsat-lr",
        "lsat-rc",
        "math",
        "gaokao-mathcloze",
    )
