"""The file that the authors of C-Eval score: {"subject": {"0": "A", ...}, ...} for all 52 subjects.

In: rows of a run on the split test. Out: submission.json, or the reason why there can be none. No score is made up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chuan.json_file import save_json
from chuan.staging import staged_file

# How many questions each subject of the split test has.
_COUNTS = """
    computer_network:171 operating_system:179 computer_architecture:193 college_programming:342 college_physics:176
    college_chemistry:224 advanced_mathematics:173 probability_and_statistics:166 discrete_mathematics:153
    electrical_engineer:339 metrology_engineer:219 high_school_mathematics:166 high_school_physics:175
    high_school_chemistry:172 high_school_biology:175 middle_school_mathematics:177 middle_school_biology:192
    middle_school_physics:178 middle_school_chemistry:185 veterinary_medicine:210 college_economics:497
    business_administration:301 marxism:179 mao_zedong_thought:219 education_science:270 teacher_qualification:399
    high_school_politics:176 high_school_geography:178 middle_school_politics:193 middle_school_geography:108
    modern_chinese_history:212 ideological_and_moral_cultivation:172 logic:204 law:221
    chinese_language_and_literature:209 art_studies:298 professional_tour_guide:266 legal_professional:215
    high_school_chinese:178 high_school_history:182 middle_school_history:207 civil_servant:429 sports_science:180
    plant_protection:199 basic_medicine:175 clinical_medicine:200 urban_and_rural_planner:418 accountant:443
    fire_engineer:282 environmental_impact_assessment_engineer:281 tax_accountant:443 physician:443
"""
QUESTIONS = {name: int(count) for name, _, count in (pair.partition(":") for pair in _COUNTS.split())}


def describe_submission(rows: Sequence[Mapping[str, Any]]) -> str:
    """What keeps the rows from being a submission; "" for nothing: every subject, all its questions, A to D."""
    answers = collect_answers(rows)
    missing = [name for name in QUESTIONS if name not in answers]
    if missing:
        return f"{len(missing)} of {len(QUESTIONS)} subjects are missing, {missing[0]} first"
    for name, letters in answers.items():
        if letters.keys() != {str(number) for number in range(QUESTIONS[name])}:
            return f"{name} has {len(letters)} questions instead of those numbered 0 to {QUESTIONS[name] - 1}"
        unanswered = [number for number, letter in letters.items() if letter not in ("A", "B", "C", "D")]
        if unanswered:
            return f"question {unanswered[0]} of {name} has no letter"
    return ""


def write_submission(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Whole or not there."""
    with staged_file(path) as staged:
        save_json(staged, collect_answers(rows))


def collect_answers(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str | None]]:
    """Letters by subject and id."""
    answers: dict[str, dict[str, str | None]] = {}
    for row in rows:
        answers.setdefault(row["subject"], {})[row["id"]] = row["predicted"]
    return answers
