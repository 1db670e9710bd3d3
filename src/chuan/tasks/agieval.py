"""AGIEval: 21 files of admission and qualification exams in two languages, in the version v1.1 of 2024 or v1 of 2023.

In: a folder with `v1_1` or `v1` and, for the demonstrations of few-shot prompts, few_shot_prompts.csv beside it. Out:
`Question`s; the demonstrations are the split `dev`. Source: Zhong et al. 2023, arXiv:2304.06364. Version 1.1 states
that every item has one answer, and seven of gaokao-mathqa have several: they are of kind "multiple_choice" here.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from chuan.errors import ChuanError
from chuan.tasks.files import find_folder, normalise_newlines, read_csv, read_json_lines
from chuan.tasks.question import LETTERS, Question, Subject

SPLITS = ("dev", "test")

_LANGUAGES = {
    "en": """
        aqua-rat gaokao-english logiqa-en lsat-ar lsat-lr lsat-rc math sat-en sat-en-without-passage sat-math
    """,
    "zh": """
        gaokao-biology gaokao-chemistry gaokao-chinese gaokao-geography gaokao-history gaokao-mathcloze gaokao-mathqa
        gaokao-physics jec-qa-ca jec-qa-kd logiqa-zh
    """,
}
# sat-en-without-passage repeats sat-en: an average that takes both counts its questions twice.
SUBJECTS = {
    name: Subject(name, name, name.split("-")[0], language)
    for language, names in _LANGUAGES.items()
    for name in names.split()
}
_PLACES = {
    "agieval": ["agieval/data/v1_1", "data/v1_1", "v1_1"],
    "agieval-v1": ["agieval/microsoft_v1_2023-06/v1", "agieval/data/v1", "microsoft_v1_2023-06/v1", "data/v1", "v1"],
}
# "(A)text", "A．text", "  B . text", "C: text", "D? text"; in LogiQA and in damaged items also "A text".
_MARK = re.compile(r"\s*(?:[(（]\s*([A-G])\s*[)）]|([A-G])\s*[．.:：、。?？)）]|([A-G])(?=\s))\s*")


def load_subject(data: Path, subject: str, split: str, version: str = "agieval") -> list[Question]:
    """The items of one file in order. Raises ChuanError for a file that is missing or of another format."""
    folder = find_folder(data, _PLACES[version], "AGIEval")
    if split == "dev":
        return _load_demonstrations(folder.parent / "few_shot_prompts.csv", subject, version)
    path = folder / f"{subject}.jsonl"
    return [
        _build_question(item, version, subject, "test", str(number), f"{path}, line {number + 1}")
        for number, item in read_json_lines(path)
    ]


def split_marks(options: list[str]) -> tuple[str, ...]:
    """The texts of options without their marks, in the order of the letters.

    LogiQA lists some options as A, C, B, D, as they stood in two columns of print; its labels mean the marks. Where the
    marks are no permutation of the letters (a letter twice, none at all) the options stay in the order of the file.
    """
    texts, letters = [], []
    for position, option in enumerate(options):
        match = _MARK.match(option)
        letter = next((group for group in match.groups() if group), "") if match else ""
        # A mark without brackets is one only where it is the letter that is due: "A.B was listed" is text.
        if match is None or (match[1] is None and letter != LETTERS[position : position + 1]):
            texts.append(option.strip())
            letters.append("")
        else:
            texts.append(option[match.end() :].strip())
            letters.append(letter)
    if sorted(letters) == list(LETTERS[: len(options)]):
        texts = [text for _, text in sorted(zip(letters, texts, strict=True))]
    return tuple(texts)


def _build_question(
    item: Any, version: str, subject: str, split: str, name: str, where: str, why: str = ""
) -> Question:
    try:
        options = item["options"] or []
        label, free = item.get("label"), item.get("answer")
        question, passage = item["question"], item.get("passage") or ""
        if not all(isinstance(text, str) for text in [question, passage, *options]):
            raise TypeError
    except (KeyError, TypeError, AttributeError):
        raise ChuanError(f"{where} is no item of AGIEval; fetch the file again from its source") from None
    if options:
        letters = re.sub(r"[^A-G]", "", "".join(label)) if label else ""
        kind, answers = "single_choice" if len(letters) == 1 else "multiple_choice", (letters,) if letters else ()
    else:
        kind, answers = "cloze", (str(free),) if free is not None else ()
    options = [normalise_newlines(option) for option in options]
    return Question(
        version,
        subject,
        split,
        name,
        normalise_newlines(question),
        split_marks(options),
        answers,
        passage=normalise_newlines(passage),
        options=tuple(options),
        explanation=why,
        kind=kind,
    )


def _load_demonstrations(path: Path, subject: str, version: str) -> list[Question]:
    """A column of few_shot_prompts.csv: sample and explanation in turn; the samples are Python literals, not JSON."""
    rows = read_csv(path)
    column = "sat-en" if subject == "sat-en-without-passage" else subject
    header = rows[0] if rows else []
    if column not in header:
        raise ChuanError(f"{path} has no column {column}; fetch it again from its source")
    cells = {row[0]: row[header.index(column)] for row in rows[1:] if len(row) == len(header)}
    questions = []
    for number in range(1, len(cells) // 2 + 1):
        sample = cells.get(f"sample {number}", "")
        if not sample.strip():
            continue
        where = f"{path}, {column}, sample {number}"
        try:
            item = ast.literal_eval(sample.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise ChuanError(f"{where} is no Python literal; fetch the file again from its source") from None
        if subject != column and isinstance(item, dict):
            item["passage"] = None
        explanation = cells.get(f"explanation {number}", "")
        questions.append(_build_question(item, version, subject, "dev", str(number - 1), where, explanation))
    return questions
