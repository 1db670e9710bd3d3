"""The published tables, cell by cell, and what stands beside them."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from chuan.errors import ChuanError
from chuan.evaluation.board_text import render_html, render_json, render_markdown
from chuan.evaluation.leaderboard import build_boards
from chuan.evaluation.published import load_published
from chuan.evaluation.runs import find_runs
from chuan.tasks.benchmarks import BENCHMARKS
from tests.evaluation.runs import save_run

PUBLISHED = Path(__file__).parents[3] / "shared" / "evaluation" / "published.csv"


def test_all_cells_are_there():
    values = [value for row in load_published() for value in row.values.values()]
    assert len([value for value in values if value is not None]) == 147
    assert values.count(None) == 8
    assert 0.0 not in values
    tables = [row.benchmark for row in load_published()]
    assert [tables.count(name) for name in ("C-Eval", "Gaokao", "AGIEval", "MMLU")] == [15, 10, 10, 9]


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the transcription of the card is not at hand")
def test_every_cell_name_and_mark_is_the_cards():
    ours = [
        (row.benchmark, row.printed, row.mark, column, value)
        for row in load_published()
        for column, value in row.values.items()
    ]
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        theirs = [
            (r["benchmark"], r["model"], r["mark"], r["column"], float(r["value"]) if r["value"] else None)
            for r in csv.DictReader(file)
        ]
    assert ours == theirs


def test_one_model_has_one_name_and_one_size():
    printed = {}
    for row in load_published():
        printed.setdefault(row.model, set()).add(row.printed)
    assert printed["LLaMA-7B"] == {"LLaMA-7B", "LLaMA-7B-hf"}
    assert printed["BLOOM-7B1"] == {"BLOOM-7B", "BLOOM 7B"}
    assert len(printed) == 17
    sizes = {(row.model, row.parameters) for row in load_published()}
    assert len(sizes) == 17
    assert {model for model, size in sizes if size is None} == {
        "GPT-4",
        "ChatGPT",
        "Claude-v1.3",
        "Claude-instant-v1.0",
    }


def test_ceval_averages_are_means_over_subjects():
    counts = {"STEM": 20, "Social Sciences": 10, "Humanities": 11, "Others": 11}
    own = [subject.category for subject in BENCHMARKS["ceval"].subjects.values()]
    assert sorted(own.count(name) for name in set(own)) == sorted(counts.values())
    rows = [row for row in load_published() if row.benchmark == "C-Eval"]
    for row in rows:
        mean = sum(count * row.values[name] for name, count in counts.items()) / 52
        assert mean == pytest.approx(row.values["Average"], abs=0.1), row.model


def test_mmlu_averages_are_means_over_questions():
    counts = {"STEM": 3018, "Humanities": 4705, "Social Sciences": 3077, "Other": 3242}
    rows = [row for row in load_published() if row.benchmark == "MMLU" and None not in row.values.values()]
    assert len(rows) == 7
    for row in rows:
        mean = sum(count * row.values[name] for name, count in counts.items()) / 14042
        assert mean == pytest.approx(row.values["Average"], abs=0.1), row.model


def test_an_empty_cell_stays_empty():
    (board,) = build_boards(load_published(), benchmark="mmlu")
    markdown = render_markdown([board])
    falcon = next(line for line in markdown.splitlines() if "Falcon" in line)
    assert falcon == "|  | Falcon-7B (1) | 7 |  |  |  |  | 35.0 |"
    table = json.loads(render_json([board]))["tables"][0]
    assert next(row for row in table["rows"] if row["model"] == "MPT-7B")["values"]["STEM"] is None


def test_figures_from_elsewhere_are_not_ranked():
    (board,) = build_boards(load_published(), benchmark="MMLU")
    ranks = {row.model: row.rank for row in board.rows}
    assert ranks["Baichuan-7B"] == 1
    assert ranks["Falcon-7B"] is None
    assert ranks["LLaMA-7B"] is None
    assert sorted(rank for rank in ranks.values() if rank) == [1, 2, 3, 4, 5, 6]


def test_sorting_and_filtering():
    (board,) = build_boards(load_published(), benchmark="ceval", sort="avg(hard)", max_size=7)
    figures = [row.values["Avg(Hard)"] for row in board.rows]
    assert figures == sorted(figures, reverse=True)
    assert board.rows[0].model == "Baichuan-7B"
    assert all(row.parameters <= 7 for row in board.rows)
    boards = build_boards(load_published(), columns=["STEM"])
    assert [(b.benchmark, b.columns) for b in boards] == [("C-Eval", ["STEM"]), ("MMLU", ["STEM"])]
    with pytest.raises(ChuanError, match="no table here has that column"):
        build_boards(load_published(), sort="Physics")
    with pytest.raises(ChuanError, match="no published table is of cmmlu"):
        build_boards(load_published(), benchmark="cmmlu")


def test_own_runs_are_ranked_only_where_they_can_be_compared(tmp_path):
    save_run(tmp_path / "a", model="mine", benchmark="ceval", share=0.5, kind="macro")
    save_run(tmp_path / "b", model="val", benchmark="ceval", share=0.9, kind="macro", split="val")
    save_run(tmp_path / "c", model="exam", benchmark="gaokao", share=0.9, kind="micro", comparable=True)
    save_run(tmp_path / "d", model="other prompt", benchmark="mmlu", share=0.9, kind="micro", comparable=False)
    save_run(tmp_path / "e", model="unscored", benchmark="ceval", share=None, kind="macro")
    boards = {board.benchmark: board for board in build_boards(load_published(), find_runs(tmp_path))}
    mine = next(row for row in boards["C-Eval"].rows if row.is_own)
    assert (mine.model, mine.rank, mine.values["Average"]) == ("mine, 8-bit", 4, 50.0)
    assert {row.model: row.rank for row in boards["C-Eval"].apart} == {"val, 8-bit": None, "unscored, 8-bit": None}
    assert [row.model for row in boards["Gaokao"].apart] == ["exam, 8-bit"]
    assert [row.model for row in boards["MMLU"].apart] == ["other prompt, 8-bit"]
    assert boards["Gaokao"].rows[0].model == "Baichuan-7B"
    text = render_markdown(list(boards.values()))
    assert "yours, not ranked" in text
    assert "split was never published" in text


def test_the_page_loads_nothing_and_draws_every_figure(tmp_path):
    save_run(tmp_path / "a", model="<b>mine</b>", benchmark="ceval", share=0.5, kind="macro")
    page = render_html(build_boards(load_published(), find_runs(tmp_path)))
    assert "<b>mine" not in page
    assert not re.search(r"(?:src|href)=|url\(|@import", page)
    assert page.count("<rect") == 15 + 10 + 10 + 9 + 1
    assert "prefers-color-scheme: dark" in page


def test_the_verb_is_plain_when_piped():
    done = subprocess.run(
        [sys.executable, "-c", "from chuan.cli import main; main()", "leaderboard", "--benchmark", "AGIEval"],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"COLUMNS": "40"},
        check=True,
    )
    line = next(line for line in done.stdout.splitlines() if "Baichuan-7B" in line)
    assert line.split() == ["1", "Baichuan-7B", "7", "34.44"]
    assert "copying slip" in done.stdout
    assert "\x1b" not in done.stdout
