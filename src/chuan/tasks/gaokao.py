"""GAOKAO-Bench: the objective questions of the Chinese college entrance exam, 2010 to 2022; no splits.

In: a folder with Data/Objective_Questions. Out: `Question`s whose options stand inside the question, as in the exam
papers. Source: Zhang et al. 2023, arXiv:2305.12474. Its texts come out of PDF files (blanks inside words, lines
broken in mid-sentence, a wrong character here and there) and stay as they are.
"""

from __future__ import annotations

from pathlib import Path

from chuan.errors import ChuanError
from chuan.tasks.files import find_folder, normalise_newlines, read_json
from chuan.tasks.question import Question, Subject

SPLITS = ("test",)

# File, subject as the official prompts name it, language, kind (types of the official Obj_Prompt.json).
_FILES = [
    ("2010-2022_Math_I_MCQs", "数学", "zh", "single_choice"),
    ("2010-2022_Math_II_MCQs", "数学", "zh", "single_choice"),
    ("2010-2022_History_MCQs", "历史", "zh", "single_choice"),
    ("2010-2022_Biology_MCQs", "生物", "zh", "single_choice"),
    ("2010-2022_Political_Science_MCQs", "政治", "zh", "single_choice"),
    ("2010-2022_Chemistry_MCQs", "化学", "zh", "single_choice"),
    ("2010-2013_English_MCQs", "英语", "en", "single_choice"),
    ("2010-2022_Physics_MCQs", "物理", "zh", "multiple_choice"),
    ("2010-2022_Chinese_Lang_and_Usage_MCQs", "语文", "zh", "several_questions"),
    ("2010-2022_Chinese_Modern_Lit", "语文", "zh", "several_questions"),
    ("2010-2022_Geography_MCQs", "地理", "zh", "several_questions"),
    ("2010-2022_English_Reading_Comp", "英语", "en", "several_questions"),
    ("2010-2022_English_Fill_in_Blanks", "英语", "en", "several_questions"),
    ("2012-2022_English_Cloze_Test", "英语", "en", "five_of_seven"),
]
SUBJECTS = {name: Subject(name, title, kind, language) for name, title, language, kind in _FILES}


def load_subject(data: Path, subject: str, split: str) -> list[Question]:
    """The items of one file in order. Raises ChuanError for a file that is missing or of another format."""
    folder = find_folder(data, ["gaokao/Data/Objective_Questions", "Data/Objective_Questions", "."], "GAOKAO-Bench")
    path = folder / f"{subject}.json"
    content = read_json(path)
    items = content.get("example") if isinstance(content, dict) else None
    if not isinstance(items, list):
        raise ChuanError(f"{path} has no list `example` of questions; fetch it again from its source")
    questions = []
    for number, item in enumerate(items):
        try:
            question, answers = item["question"], tuple(item["answer"])
            points, why = float(item["score"]), item.get("analysis") or ""
            if not all(isinstance(text, str) for text in [question, why, *answers]):
                raise TypeError
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ChuanError(f"{path}, item {number} is no item of GAOKAO-Bench; fetch the file again") from None
        questions.append(
            Question(
                "gaokao",
                subject,
                split,
                str(number),
                normalise_newlines(question),
                answers=answers,
                explanation=normalise_newlines(why),
                kind=SUBJECTS[subject].category,
                points=points,
            )
        )
    return questions
