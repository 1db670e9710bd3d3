"""Two runs, question by question."""

import pytest

from chuan.errors import ChuanError
from chuan.evaluation.compare import compare_runs, mcnemar
from chuan.evaluation.leaderboard_verb import render_comparison
from tests.evaluation.runs import build_question, save_run


def save_pair(tmp_path, a, b, **options):
    return (
        save_run(tmp_path / "a", model="A", questions=[build_question(i, c) for i, c in enumerate(a)], **options),
        save_run(tmp_path / "b", model="B", questions=[build_question(i, c) for i, c in enumerate(b)], **options),
    )


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 2 / 32), (1, 9, 2 * 11 / 1024), (600, 600, 1.0)],
)
def test_mcnemar_is_the_sign_test(only_a, only_b, p):
    assert mcnemar(only_a, only_b) == pytest.approx(p)
    assert mcnemar(only_b, only_a) == mcnemar(only_a, only_b)


def test_counts_and_flips(tmp_path):
    a, b = save_pair(tmp_path, [True, True, False, False, None], [True, False, True, False, None])
    found = compare_runs(a, b)
    assert (found.both_right, found.only_a, found.only_b, found.both_wrong) == (1, 1, 1, 1)
    assert found.flips == {"logic": (["1"], ["2"])}
    assert "logic: only A 1; only B 2" in render_comparison(found)


def test_the_interval_is_that_of_drawing_questions_again(tmp_path):
    outcomes_a, outcomes_b = [False] * 40 + [True] * 60, [True] * 20 + [False] * 20 + [True] * 60
    a, b = save_pair(tmp_path, outcomes_a, outcomes_b, kind="micro")
    found = compare_runs(a, b, seed=3)
    assert found.difference == pytest.approx(0.2)
    spread = 1.96 * (0.2 * 0.8 / 100) ** 0.5
    assert found.interval == pytest.approx((0.2 - spread, 0.2 + spread), abs=0.015)
    assert compare_runs(a, b, seed=3).interval == found.interval


def test_a_macro_difference_weighs_subjects_equally(tmp_path):
    def questions(correct):
        return [build_question(i, correct, "law") for i in range(90)] + [build_question(0, True, "logic")]

    a = save_run(tmp_path / "a", questions=questions(False))
    b = save_run(tmp_path / "b", questions=questions(True))
    assert compare_runs(a, b).difference == pytest.approx(0.5)


def test_what_is_not_the_same_is_refused_in_one_line(tmp_path):
    a, b = save_pair(tmp_path, [True, False], [True])
    with pytest.raises(ChuanError, match="different questions"):
        compare_runs(a, b)
    c = save_run(tmp_path / "c", questions=[build_question(0, True), build_question(1, True, prompt="other")])
    with pytest.raises(ChuanError, match="asked 1 questions in other words"):
        compare_runs(a, c)
    d, e = (save_run(tmp_path / name, questions=[build_question(0, None)]) for name in "de")
    with pytest.raises(ChuanError, match="no scored questions"):
        compare_runs(d, e)
    (tmp_path / "f").mkdir()
    with pytest.raises(ChuanError, match="run.json is missing"):
        compare_runs(a, tmp_path / "f")
