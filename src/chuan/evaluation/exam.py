"""GAOKAO-Bench as its authors ask it: a conversation an item, a reply in free text, points.

In: questions, replies. Out: messages, and what a reply earned. Knows no model. Source:
github.com/OpenLMLab/GAOKAO-Bench, Bench: Obj_Prompt.json (prompts), bench_function.py (what is read off a reply),
OBJ_score_evaluation.py (points).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from chuan.tasks.question import Question, Subject

_STEPS = "请你一步一步思考并将思考过程写在【解析】和<eoe>之间。"
_FORM = "完整的题目回答的格式如下：\n"
_STRICTLY = "请你严格按照上述格式作答。"
_SINGLE = (
    f"选择题\n{_STEPS}你将从A，B，C，D中选出正确的答案，并写在【答案】和<eoa>之间。\n例如：【答案】: A <eoa>\n{_FORM}"
)
_SEVERAL = (
    "请你一步一步思考。每一题你将从A，B，C，D中选出正确的答案，并写在【答案】和<eoa>之间。\n"
    f"例如：（1）【答案】 A <eoa>\n（2）【答案】 B <eoa>\n{_STRICTLY}\n"
)
# Of the files that share theirs with no other; the blanks, commas and missing newlines are the authors'.
_SYSTEMS = {
    "2010-2022_Physics_MCQs": (
        f"请你做一道物理选择题。\n{_STEPS}你将从A，B，C，D中选出所有符合题意的答案，并写在【答案】和<eoa>之间。\n"
        f"例如：【答案】 AB <eoa>\n{_FORM}【解析】 ... <eoe>\n【答案】... <eoa>\n{_STRICTLY}\n"
    ),
    "2010-2022_Chinese_Lang_and_Usage_MCQs": (
        f"请你做一道语文{_SINGLE}（1）【解析】 ... <eoe>\n【答案】 ... <eoa>\n（2）【解析】 ... <eoe>\n"
        f"【答案】 ... <eoa>\n{_STRICTLY}如果不止一道题，请分别作答\n题目如下："
    ),
    "2010-2022_Chinese_Modern_Lit": f"请你做一道语文阅读理解题，其中包含三个小题。\n{_SEVERAL}",
    "2010-2022_Geography_MCQs": f"请你做一道地理选择题，其中包含两到三个小题。\n{_SEVERAL}",
    "2010-2022_English_Reading_Comp": f"请你做一道英语阅读理解题，其中包含三到五个小题。\n{_SEVERAL}",
    "2010-2022_English_Fill_in_Blanks": f"请你做一道英语完形填空题,其中包含二十个小题。\n{_SEVERAL}",
    "2012-2022_English_Cloze_Test": (
        "请回答下面的问题，将符合题意的五个选项的字母写在【答案】和<eoa>之间，例如“【答案】 A B C D E <eoa>\n"
        "请严格按照上述格式作答。\n"
    ),
}


@dataclass(frozen=True)
class ExamProtocol:
    """Items without demonstrations, replies that are drawn, and points: partly right is worth something.

    longest: tokens of a reply, which the authors leave to the model that they ask.
    """

    name: str = "official"
    benchmark: str = "gaokao"
    average: Literal["points"] = "points"
    temperature: float = 0.3
    longest: int = 1024
    drawn: bool = False
    remark: str = ""

    def render_messages(
        self, subject: Subject, demonstrations: Sequence[Question], question: Question
    ) -> list[dict[str, str]]:
        """What the authors call the prefix, as the system's turn, and the item."""
        return [
            {"role": "system", "content": render_system(subject)},
            {"role": "user", "content": question.question.strip() + "\n"},
        ]


def render_system(subject: Subject) -> str:
    """The prefix of a file."""
    single = f"请你做一道{subject.title}{_SINGLE}【解析】 ... <eoe>\n【答案】 ... <eoa>\n{_STRICTLY}\n题目如下："
    return _SYSTEMS.get(subject.name, single)


def grade_reply(question: Question, reply: str) -> dict[str, Any]:
    """What a row says of it: answers, whether all are right, points won and possible.

    Another number of answers than there are blanks is no answer to any, as the authors have it.
    """
    gold = question.answers
    found = extract_answers(question.kind, reply, len(gold))
    points = 0.0
    if len(found) == len(gold):
        points = sum(_weigh(question, *pair) for pair in zip(found, gold, strict=True))
    return {
        "gold": " ".join(gold),
        "predicted": " ".join(found) if len(found) == len(gold) else None,
        "correct": tuple(found) == gold,
        "points": points,
        "possible": question.points * len(gold),
    }


def extract_answers(kind: str, reply: str, count: int) -> list[str]:
    """An answer a blank, read as the authors read them, which for one blank takes any letter A to D for an answer."""
    if kind == "single_choice":
        return re.findall(r"[A-D]", reply)[-1:]
    if kind == "multiple_choice":
        text = re.sub(r"\s", "", reply)
        start = text.find("【答案】")
        letters = "".join(re.findall(r"[A-D]", text[start:] if start > 0 else text[-10:]))
        return [letters] if letters else []
    if kind == "five_of_seven":
        return re.findall(r"[A-G]", reply)[:5]
    marked = re.findall(r"【答案】\s*[:：]*\s*([A-Z])", reply)
    return marked if len(marked) == count else re.findall(r"[A-Z]", reply)[:count]


def _weigh(question: Question, answer: str, gold: str) -> float:
    """Some of several right letters and no wrong one earn half."""
    if answer == gold:
        return question.points
    is_part = question.kind == "multiple_choice" and set(answer) < set(gold)
    return question.points / 2 if is_part else 0.0
