"""The report of a run."""

import math
import re

import pytest

from chuan.evaluation.report import measure_calibration, write_report
from tests.evaluation.runs import build_question, save_run


def with_confidence(number, confidence, correct):
    rest = math.log((1 - confidence) / 3)
    row = build_question(number, correct)
    row["scores"] = {"A": math.log(confidence) + 5, "B": rest + 5, "C": rest + 5, "D": rest + 5}
    return row


def test_calibration_error():
    rows = [with_confidence(i, 0.85, i < 5) for i in range(10)] + [with_confidence(i, 0.45, i < 4) for i in range(10)]
    found = measure_calibration(rows)
    assert [(round(mean, 6), right, count) for mean, right, count in found.bins] == [(0.45, 0.4, 10), (0.85, 0.5, 10)]
    assert found.error == pytest.approx(0.5 * 0.05 + 0.5 * 0.35)


def test_no_letters_no_calibration():
    row = build_question(0, True)
    row["scores"] = None
    assert measure_calibration([row, build_question(1, None)]) is None


def test_both_files_say_what_was_asked(tmp_path):
    folder = save_run(tmp_path / "a", model="<i>m|", questions=[build_question(i, i % 2 == 0) for i in range(8)])
    write_report(folder)
    page, text = ((folder / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    for shown in ("baichuan", "50.00", "1.00", "macro", "float32", "calibration error"):
        assert shown in page
        assert shown in text
    assert "<i>" not in page
    assert not re.search(r"(?:src|href)=|url\(|@import", page)
    assert page.count("<rect") == 3
    assert "<circle" in page


def test_an_unscored_run_shows_no_figure(tmp_path):
    folder = save_run(tmp_path / "a", share=None, questions=[build_question(0, None)])
    write_report(folder)
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "Not scored" in text
    assert "| logic |  |  | 100 |" in text
    assert "<rect" not in (folder / "report.html").read_text(encoding="utf-8")
