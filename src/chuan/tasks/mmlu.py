"""MMLU: 57 English subjects in four categories, four options, one right.

In: a folder with `dev`, `val` and `test`. Out: `Question`s. Source: Hendrycks et al. 2021, arXiv:2009.03300; categories
from the categories.py of its repository. The texts are not stripped: the published prompts carry their blanks.
"""

from __future__ import annotations

from pathlib import Path

from chuan.errors import ChuanError
from chuan.tasks.files import find_folder, read_csv
from chuan.tasks.question import Question, Subject

SPLITS = ("dev", "val", "test")

_CATEGORIES = {
    "STEM": """
        abstract_algebra astronomy college_biology college_chemistry college_computer_science college_mathematics
        college_physics computer_security conceptual_physics electrical_engineering elementary_mathematics
        high_school_biology high_school_chemistry high_school_computer_science high_school_mathematics
        high_school_physics high_school_statistics machine_learning
    """,
    "humanities": """
        formal_logic high_school_european_history high_school_us_history high_school_world_history international_law
        jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory professional_law
        world_religions
    """,
    "social sciences": """
        econometrics high_school_geography high_school_government_and_politics high_school_macroeconomics
        high_school_microeconomics high_school_psychology human_sexuality professional_psychology public_relations
        security_studies sociology us_foreign_policy
    """,
    "other": """
        anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging management marketing
        medical_genetics miscellaneous nutrition professional_accounting professional_medicine virology
    """,
}
SUBJECTS = {
    name: Subject(name, name.replace("_", " "), category, "en")
    for category, names in _CATEGORIES.items()
    for name in names.split()
}


def load_subject(data: Path, subject: str, split: str) -> list[Question]:
    """The questions of one subject in file order. Raises ChuanError for a file that is missing or of another format."""
    folder = find_folder(data, ["mmlu/data", "mmlu", "data", "."], "MMLU")
    path = folder / split / f"{subject}_{split}.csv"
    questions = []
    for number, row in enumerate(read_csv(path)):
        if len(row) != 6 or row[5] not in ("A", "B", "C", "D"):
            raise ChuanError(
                f"{path}, row {number + 1} is damaged: it wants a question, four options, a letter; fetch it again"
            )
        choices = tuple(row[1:5])
        questions.append(Question("mmlu", subject, split, str(number), row[0], choices, (row[5],), options=choices))
    return questions
