"""The prompts of the benchmarks, to the newline: what is written around the questions, and how letters are read off.

In: questions. Out: text. Knows no model. One table, a row for each benchmark and protocol: `baichuan` (the published
scripts of the model card), `official` (the benchmark's authors), `harness` (lm-evaluation-harness 0.4.13). Sources:
github.com/baichuan-inc/Baichuan-7B (evaluation), hendrycks/test (evaluate.py), hkust-nlp/ceval (llama.py, chatgpt.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from chuan.errors import ChuanError
from chuan.evaluation.exam import ExamProtocol
from chuan.tasks.question import LETTERS, Question, Subject

# A letter's id: the last one of "A" alone, or of " A" as the text would go on after the cue.
LetterForm = Literal["bare", "spaced"]
# Over questions, over subjects, or points won of those that could be won.
Kind = Literal["micro", "macro", "points"]


@dataclass(frozen=True)
class LetterProtocol:
    """Few-shot prompts whose next token is read at the letters alone.

    A prompt is the header, then each demonstration's item, `gap`, letter and `end`, then the item asked. bos: whether
    the model's own ids of a beginning come first. limit: how many tokens a prompt may have, beside the model's context.
    overflow: what becomes of a longer one: demonstrations are left out from the last on, or tokens from the first on.
    drawn: for benchmarks without a published split, demonstrations are drawn from the questions by a seed.
    system: what a conversation opens with, where the authors say so.
    """

    name: str
    benchmark: str
    header: Callable[[Subject], str]
    item: Callable[[Question, Subject], str]
    gap: str
    end: str
    letters: LetterForm
    bos: bool
    average: Kind
    limit: int | None = None
    overflow: Literal["drop demonstrations", "cut the beginning"] = "drop demonstrations"
    drawn: bool = False
    remark: str = ""
    system: Callable[[Subject], str] | None = None

    def render(self, subject: Subject, demonstrations: Sequence[Question], question: Question) -> str:
        """The whole prompt."""
        shown = [f"{self.item(shot, subject)}{self.gap}{shot.answer}{self.end}" for shot in demonstrations]
        return self.header(subject) + "".join(shown) + self.item(question, subject)

    def render_messages(
        self, subject: Subject, demonstrations: Sequence[Question], question: Question
    ) -> list[dict[str, str]]:
        """The same as a conversation, as C-Eval's chatgpt.py has it: a turn an item, the letter alone as the answer."""
        messages = [{"role": "system", "content": self.system(subject)}] if self.system is not None else []
        opening = self.header(subject)
        for shot in demonstrations:
            messages.append({"role": "user", "content": opening + self.item(shot, subject)})
            messages.append({"role": "assistant", "content": str(shot.answer)})
            opening = ""
        return [*messages, {"role": "user", "content": opening + self.item(question, subject)}]


def render_options(question: Question) -> str:
    """`A. ...` to `D. ...`, a line each, each after a newline; nothing where they stand inside the question."""
    return "".join(f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False))


def _mmlu_header(subject: Subject) -> str:
    # Two blanks: the authors' format_subject returns the name with one in front.
    return f"The following are multiple choice questions (with answers) about  {subject.title}.\n\n"


def _mmlu_item(question: Question, subject: Subject) -> str:
    return f"{question.question}{render_options(question)}\nAnswer:"


def _mmlu_harness_header(subject: Subject) -> str:
    return f"The following are multiple choice questions (with answers) about {subject.title}.\n\n"


def _mmlu_harness_item(question: Question, subject: Subject) -> str:
    return f"{question.question.strip()}{render_options(question)}\nAnswer:"


def _ceval_header(subject: Subject) -> str:
    return f"以下是中国关于{subject.title}考试的单项选择题，请选出其中的正确答案。\n\n"


def _ceval_system(subject: Subject) -> str:
    return f"你是一个中文人工智能助手，以下是中国关于{subject.title}考试的单项选择题，请选出其中的正确答案。"


def _ceval_item(question: Question, subject: Subject) -> str:
    return f"{question.question}{render_options(question)}\n答案："


def _ceval_harness_header(subject: Subject) -> str:
    return f"以下是中国关于{subject.title}的单项选择题，请选出其中的正确答案。\n\n"


def _ceval_harness_item(question: Question, subject: Subject) -> str:
    return f"{question.question.strip()}{render_options(question)}\n答案："


def _agieval_header(subject: Subject) -> str:
    if subject.language == "en":
        return "The following are multiple choice questions (with answers).\n\n"
    return "以下是单项选择题，请选出其中的正确答案。\n\n"


def _agieval_item(question: Question, subject: Subject) -> str:
    passage = f"{question.passage}\n" if question.passage else ""
    cue = "Answer:" if subject.language == "en" else "答案："
    return f"{passage}{question.question}{render_options(question)}\n{cue}"


def _gaokao_item(question: Question, subject: Subject) -> str:
    return f"{question.question.strip()}\n答案："


_OURS = "the card publishes neither split nor prompt of this benchmark: both are ours"

_TABLE: list[LetterProtocol | ExamProtocol] = [
    LetterProtocol(
        "baichuan", "mmlu", _mmlu_header, _mmlu_item, " ", "\n\n", "bare", bos=False, average="micro", limit=2048
    ),
    LetterProtocol(
        "official", "mmlu", _mmlu_header, _mmlu_item, " ", "\n\n", "spaced", bos=True, average="micro", limit=2048
    ),
    LetterProtocol(
        "harness",
        "mmlu",
        _mmlu_harness_header,
        _mmlu_harness_item,
        " ",
        "\n\n",
        "spaced",
        bos=True,
        average="micro",
        overflow="cut the beginning",
    ),
    LetterProtocol("baichuan", "ceval", _ceval_header, _ceval_item, "", "\n", "bare", bos=False, average="macro"),
    LetterProtocol(
        "official",
        "ceval",
        _ceval_header,
        _ceval_item,
        "",
        "\n\n",
        "bare",
        bos=True,
        average="macro",
        system=_ceval_system,
    ),
    LetterProtocol(
        "harness",
        "ceval",
        _ceval_harness_header,
        _ceval_harness_item,
        " ",
        "\n\n",
        "spaced",
        bos=True,
        average="micro",
        overflow="cut the beginning",
    ),
    *(
        LetterProtocol(
            "baichuan", benchmark, header, item, "", "\n", "bare", bos=False, average="micro", drawn=True, remark=_OURS
        )
        for benchmark, header, item in (
            ("agieval", _agieval_header, _agieval_item),
            ("agieval-v1", _agieval_header, _agieval_item),
            ("gaokao", _ceval_header, _gaokao_item),
        )
    ),
    ExamProtocol(),
]

PROTOCOLS = {(protocol.benchmark, protocol.name): protocol for protocol in _TABLE}


def find_protocol(benchmark: str, name: str) -> LetterProtocol | ExamProtocol:
    """Raises ChuanError for a pair that there is not."""
    found = PROTOCOLS.get((benchmark, name))
    if found is None:
        known = ", ".join(protocol for of, protocol in PROTOCOLS if of == benchmark)
        raise ChuanError(f"{benchmark} has no protocol {name}; it has {known}")
    return found
