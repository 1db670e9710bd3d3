"""Decontamination: planted questions leave in whatever spelling, other text stays."""

import csv
from pathlib import Path

import pytest

from chuan.corpus.decontaminate import BenchmarkSettings, DecontaminateSettings, decontaminate_stages
from chuan.recipes import load_recipe
from chuan.tasks.benchmarks import load_questions
from tests.support.planted import WAYS, Writer, read_folder, run_stages, write_source

QUESTIONS = [
    ("Which of the following rivers flows through the largest number of capital cities on its way to the sea?",
     "The Danube", "The Rhine", "The Volga", "The Loire", "A"),
    ("A train leaves the station at noon and travels at sixty miles an hour; how far has it gone by half past three?",
     "180 miles", "210 miles", "240 miles", "270 miles", "B"),
]  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split in ("dev", "val", "test"):
        folder = tmp_path / "data" / split
        folder.mkdir(parents=True)
        with (folder / f"anatomy_{split}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(QUESTIONS)
    return tmp_path / "data"


def settings_for(data: Path) -> DecontaminateSettings:
    return DecontaminateSettings(
        benchmarks=[BenchmarkSettings(name="mmlu", data=str(data), splits=["test"], subjects=["anatomy"])]
    )


@pytest.mark.parametrize("way", WAYS)
def test_planted_questions_leave_and_other_text_stays(data, tmp_path, way):
    questions = load_questions("mmlu", data, ["anatomy"])
    writer = Writer("en", 3)
    planted = [
        (f"planted-{i}", f"{writer.write(200)}\n\n{WAYS[way](question)}\n\n{writer.write(200)}")
        for i, question in enumerate(questions)
    ]
    plain = [(f"plain-{i}", writer.write(300)) for i in range(5)]
    source = write_source([planted, plain], tmp_path / "source")
    run_stages(decontaminate_stages(settings_for(data), source, str(tmp_path / "work"), 2))
    kept, rejected = read_folder(tmp_path / "work" / "kept"), read_folder(tmp_path / "work" / "rejected")
    cut = read_folder(tmp_path / "work" / "cut")
    assert {name for name in cut.keys() | rejected.keys() if name.startswith("plain")} == set()
    assert {f"planted-{i}" for i in range(len(questions))} <= cut.keys() | rejected.keys()
    for document in kept.values():
        assert "capital cities" not in " ".join(document.text.split())
        assert "sixty miles" not in " ".join(document.text.split())


def test_an_unknown_benchmark_is_one_line(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('[[benchmarks]]\nname = "mmlo"\ndata = "."', encoding="utf-8")
    with pytest.raises(Exception, match="mmlo") as caught:
        load_recipe(path, DecontaminateSettings)
    assert "\n" not in str(caught.value)
