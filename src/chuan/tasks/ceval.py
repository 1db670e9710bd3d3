"""C-Eval: 52 Chinese subjects in four categories, four options, one right; the answers of `test` are not in its files.

In: a folder with `dev`, `val` and `test`. Out: `Question`s, with the explanations that `dev` has. Source: Huang et al.
2023, arXiv:2305.08322; names and categories from its subject_mapping.json.
"""

from __future__ import annotations

from pathlib import Path

from chuan.errors import ChuanError
from chuan.tasks.files import find_folder, read_csv
from chuan.tasks.question import Question, Subject

SPLITS = ("dev", "val", "test")

# The eight subjects that the authors score apart, "C-Eval Hard".
_HARD = {
    "advanced_mathematics",
    "discrete_mathematics",
    "probability_and_statistics",
    "college_chemistry",
    "college_physics",
    "high_school_mathematics",
    "high_school_chemistry",
    "high_school_physics",
}
# Levels are not in the data: these follow the names and the overview figure of the paper.
_PROFESSIONAL = {
    "metrology_engineer",
    "electrical_engineer",
    "teacher_qualification",
    "professional_tour_guide",
    "legal_professional",
    "civil_servant",
    "urban_and_rural_planner",
    "accountant",
    "fire_engineer",
    "environmental_impact_assessment_engineer",
    "tax_accountant",
    "physician",
}
_TITLES = {
    "STEM": {
        "computer_network": "计算机网络",
        "operating_system": "操作系统",
        "computer_architecture": "计算机组成",
        "college_programming": "大学编程",
        "college_physics": "大学物理",
        "college_chemistry": "大学化学",
        "advanced_mathematics": "高等数学",
        "probability_and_statistics": "概率统计",
        "discrete_mathematics": "离散数学",
        "electrical_engineer": "注册电气工程师",
        "metrology_engineer": "注册计量师",
        "high_school_mathematics": "高中数学",
        "high_school_physics": "高中物理",
        "high_school_chemistry": "高中化学",
        "high_school_biology": "高中生物",
        "middle_school_mathematics": "初中数学",
        "middle_school_biology": "初中生物",
        "middle_school_physics": "初中物理",
        "middle_school_chemistry": "初中化学",
        "veterinary_medicine": "兽医学",
    },
    "Social Science": {
        "college_economics": "大学经济学",
        "business_administration": "工商管理",
        "marxism": "马克思主义基本原理",
        "mao_zedong_thought": "毛泽东思想和中国特色社会主义理论体系概论",
        "education_science": "教育学",
        "teacher_qualification": "教师资格",
        "high_school_politics": "高中政治",
        "high_school_geography": "高中地理",
        "middle_school_politics": "初中政治",
        "middle_school_geography": "初中地理",
    },
    "Humanities": {
        "modern_chinese_history": "近代史纲要",
        "ideological_and_moral_cultivation": "思想道德修养与法律基础",
        "logic": "逻辑学",
        "law": "法学",
        "chinese_language_and_literature": "中国语言文学",
        "art_studies": "艺术学",
        "professional_tour_guide": "导游资格",
        "legal_professional": "法律职业资格",
        "high_school_chinese": "高中语文",
        "high_school_history": "高中历史",
        "middle_school_history": "初中历史",
    },
    "Other": {
        "civil_servant": "公务员",
        "sports_science": "体育学",
        "plant_protection": "植物保护",
        "basic_medicine": "基础医学",
        "clinical_medicine": "临床医学",
        "urban_and_rural_planner": "注册城乡规划师",
        "accountant": "注册会计师",
        "fire_engineer": "注册消防工程师",
        "environmental_impact_assessment_engineer": "环境影响评价工程师",
        "tax_accountant": "税务师",
        "physician": "医师资格",
    },
}


def _level(name: str) -> str:
    for level in ("middle_school", "high_school"):
        if name.startswith(level):
            return level
    return "professional" if name in _PROFESSIONAL else "college"


SUBJECTS = {
    name: Subject(name, title, category, "zh", _level(name), name in _HARD)
    for category, titles in _TITLES.items()
    for name, title in titles.items()
}


def load_subject(data: Path, subject: str, split: str) -> list[Question]:
    """The questions of one subject in file order. Raises ChuanError for a file that is missing or of another format."""
    folder = find_folder(data, ["ceval", "ceval-exam", "."], "C-Eval")
    path = folder / split / f"{subject}_{split}.csv"
    rows = read_csv(path)
    header = rows[0] if rows else []
    wanted = ["id", "question", "A", "B", "C", "D"] + {"test": [], "val": ["answer"], "dev": ["answer", "explanation"]}[
        split
    ]
    # Releases of `test` with answers have the columns of `val`.
    if header[: len(wanted)] != wanted:
        raise ChuanError(f"{path} has not the columns {','.join(wanted)} of C-Eval's {split}; fetch it again")
    questions = []
    for number, row in enumerate(rows[1:], start=2):
        cells = dict(zip(header, row, strict=False))
        answer = cells.get("answer", "")
        if len(row) != len(header) or answer not in ("", "A", "B", "C", "D"):
            raise ChuanError(
                f"{path}, row {number} is damaged: {len(row)} cells, answer {answer!r}; fetch the file again"
            )
        choices = tuple(row[2:6])
        answers = (answer,) if answer else ()
        questions.append(
            Question(
                "ceval",
                subject,
                split,
                row[0],
                row[1],
                choices,
                answers,
                options=choices,
                explanation=cells.get("explanation", ""),
            )
        )
    return questions
