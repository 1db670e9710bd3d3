"""Averages and standard errors, by hand."""

import math

import pytest

from chuan.evaluation.accuracy import measure_accuracy, measure_part
from chuan.tasks.benchmarks import BENCHMARKS

CEVAL, MMLU = BENCHMARKS["ceval"].subjects, BENCHMARKS["mmlu"].subjects


def build_rows(subject: str, outcomes: str) -> list[dict]:
    """`+` is right, `-` wrong, `?` not known."""
    return [{"subject": subject, "correct": {"+": True, "-": False, "?": None}[outcome]} for outcome in outcomes]


def test_macro_averages_weigh_subjects_the_same():
    rows = [*build_rows("law", "++--"), *build_rows("logic", "+++++--+"), *build_rows("operating_system", "-+")]
    accuracy = measure_accuracy(rows, CEVAL, "macro")
    average = accuracy["average"]
    assert average["value"] == pytest.approx((2 / 4 + 6 / 8 + 1 / 2) / 3)
    variance = 0.5 * 0.5 / 3 + 0.75 * 0.25 / 7 + 0.5 * 0.5 / 1
    assert average["standard_error"] == pytest.approx(math.sqrt(variance) / 3)
    assert (average["questions"], average["kind"]) == (14, "macro")
    assert accuracy["categories"]["Humanities"]["value"] == pytest.approx((0.5 + 0.75) / 2)
    assert list(accuracy["categories"]) == ["STEM", "Humanities"]
    assert list(accuracy["subjects"]) == ["operating_system", "logic", "law"]  # in the authors' order
    assert {level: part["questions"] for level, part in accuracy["levels"].items()} == {"college": 14}


def test_micro_averages_weigh_questions_the_same():
    rows = [*build_rows("anatomy", "++--"), *build_rows("virology", "+++++--+"), *build_rows("sociology", "--")]
    accuracy = measure_accuracy(rows, MMLU, "micro")
    assert accuracy["average"]["value"] == pytest.approx(8 / 14)
    assert accuracy["average"]["standard_error"] == pytest.approx(math.sqrt(8 / 14 * 6 / 14 / 13))
    assert accuracy["categories"]["other"]["value"] == pytest.approx(8 / 12)
    assert accuracy["categories"]["social sciences"]["value"] == 0
    assert "levels" not in accuracy


def test_hard_are_the_eight_of_the_authors_and_count_in_their_category_too():
    rows = [row for name in CEVAL for row in build_rows(name, "+-" if CEVAL[name].is_hard else "++")]
    accuracy = measure_accuracy(rows, CEVAL, "macro")
    assert list(accuracy["categories"]) == ["STEM", "Social Science", "Humanities", "Other", "Hard"]
    assert accuracy["categories"]["Hard"]["value"] == 0.5
    assert accuracy["categories"]["Hard"]["questions"] == 16
    assert accuracy["categories"]["STEM"]["value"] == pytest.approx((8 * 0.5 + 12) / 20)
    assert accuracy["average"]["value"] == pytest.approx((8 * 0.5 + 44) / 52)
    assert {level: part["questions"] // 2 for level, part in accuracy["levels"].items()} == {
        "college": 25,
        "professional": 12,
        "high_school": 8,
        "middle_school": 7,
    }


def test_one_unknown_answer_leaves_its_averages_without_a_value():
    rows = [*build_rows("law", "++--"), *build_rows("operating_system", "-?")]
    accuracy = measure_accuracy(rows, CEVAL, "macro")
    assert accuracy["average"]["value"] is None
    assert accuracy["average"]["standard_error"] is None
    assert accuracy["categories"]["STEM"]["value"] is None
    assert accuracy["subjects"]["law"]["value"] == 0.5
    assert accuracy["categories"]["Humanities"]["value"] == 0.5


def test_one_question_has_no_standard_error():
    part = measure_part([[{"correct": True}]], "micro")
    assert (part["value"], part["standard_error"]) == (1.0, None)
    assert measure_part([], "macro") == {"value": None, "standard_error": None, "questions": 0, "kind": "macro"}
