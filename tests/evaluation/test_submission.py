"""C-Eval's test split: a file that its authors can score, or the reason why not; never a score of our own."""

import json
from pathlib import Path

import pytest

from chuan.evaluation.evaluate import build_plan, load_plan, run_plan
from chuan.evaluation.runs import read_questions
from chuan.evaluation.submission import QUESTIONS, describe_submission
from chuan.tasks.benchmarks import BENCHMARKS
from tests.evaluation.counting import CountingBackend
from tests.evaluation.tiny_data import build_row, write_ceval

SUBJECTS = BENCHMARKS["ceval"].subjects


def build_rows() -> list[dict]:
    return [
        {"subject": name, "id": str(number), "predicted": "ABCD"[number % 4]}
        for name, count in QUESTIONS.items()
        for number in range(count)
    ]


def test_the_counts_are_the_papers():
    assert list(QUESTIONS) == list(SUBJECTS)
    totals = {
        category: sum(QUESTIONS[name] for name, subject in SUBJECTS.items() if subject.category == category)
        for category in ("STEM", "Social Science", "Humanities", "Other")
    }
    assert totals == {"STEM": 3965, "Social Science": 2520, "Humanities": 2364, "Other": 3493}


def test_what_is_no_submission():
    rows = build_rows()
    assert describe_submission(rows) == ""
    assert describe_submission([row for row in rows if row["subject"] != "law"]) == (
        "1 of 52 subjects are missing, law first"
    )
    assert describe_submission(rows[:-1]) == "physician has 442 questions instead of those numbered 0 to 442"
    assert "college_physics has 177 questions" in describe_submission(
        [*rows, {**rows[600], "subject": "college_physics", "id": "x"}]
    )
    for letter in (None, "E", ""):
        changed = [
            {**row, "predicted": letter} if row["subject"] == "logic" and row["id"] == "7" else row for row in rows
        ]
        assert describe_submission(changed) == "question 7 of logic has no letter"


def test_all_subjects_without_labels_give_a_file_and_no_score(tmp_path: Path):
    for name, count in QUESTIONS.items():
        rows = [build_row(name, n) for n in range(count)]
        write_ceval(tmp_path / "data", name, test=[row[:5] for row in rows])
    plan = build_plan("ceval", "baichuan", None, 0, None, None, tmp_path / "data")
    facts = run_plan(plan, load_plan(plan), CountingBackend(), tmp_path / "run")
    submission = json.loads((tmp_path / "run/submission.json").read_text())
    rows = read_questions(tmp_path / "run")
    assert list(submission) == list(SUBJECTS)
    assert {name: list(letters) for name, letters in submission.items()} == {
        name: [str(number) for number in range(count)] for name, count in QUESTIONS.items()
    }
    assert all(submission[row["subject"]][row["id"]] == row["predicted"] for row in rows)
    assert {row["correct"] for row in rows} == {None}
    assert facts["unlabelled"] == len(rows) == 12342
    for part in [facts["accuracy"]["average"], *facts["accuracy"]["subjects"].values()]:
        assert part["value"] is None
    assert not facts["comparable"]


@pytest.mark.parametrize("labelled", [True, False])
def test_some_subjects_give_no_file(tmp_path: Path, labelled: bool):
    rows = [build_row("law", n) for n in range(9)]
    write_ceval(tmp_path / "data", "law", dev=rows[:5], test=rows[5:] if labelled else [row[:5] for row in rows[5:]])
    plan = build_plan("ceval", "baichuan", None, 5, None, "law", tmp_path / "data")
    facts = run_plan(plan, load_plan(plan), CountingBackend(), tmp_path / "run")
    assert not (tmp_path / "run/submission.json").exists()
    assert (facts["accuracy"]["average"]["value"] is not None) == labelled
    assert ("no submission file: 51 of 52 subjects are missing" in facts["note"]) == (not labelled)
