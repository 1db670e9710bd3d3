"""`chuan evaluate` and what reads its folders, as people use them: real processes and the real small model."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from chuan.errors import ChuanError
from chuan.evaluation.evaluate_verb import run_evaluate
from chuan.evaluation.leaderboard_verb import run_compare, run_leaderboard
from tests.evaluation.tiny_data import write_many
from tests.support.folders import write_llama_folder

CHUAN = str(Path(sys.executable).with_name("chuan"))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([CHUAN, *arguments], capture_output=True, timeout=300, text=True)


@pytest.mark.xdist_group("smollm2")
def test_two_widths_of_the_real_model(tmp_path: Path, smollm2_path: Path, capsys):
    write_many(tmp_path / "data", "mmlu", ["anatomy", "virology"], 6)
    options = ["--data", str(tmp_path / "data"), "--shots", "2", "--output", str(tmp_path / "runs")]
    done = run(
        "evaluate", "smollm2-135m", "--benchmark", "mmlu", "--subjects", "anatomy,virology", "--bits", "16,8", *options
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    folders = {path.name: path for path in (tmp_path / "runs").iterdir()}
    assert len(folders) == 2
    first = next(
        path for name, path in folders.items() if re.fullmatch(r"mmlu-test-baichuan-2shot-smollm2-135m-16bit-\w+", name)
    )
    facts = json.loads((first / "run.json").read_text())
    assert facts["accuracy"]["average"]["questions"] == 12
    assert facts["versions"].keys() == {"chuan", "torch", "transformers", "python"}
    assert facts["data"]["sha256"]
    assert facts["parameters"] == 134515008
    assert (facts["bits"], facts["mode"], facts["comparable"]) == (16, "base", False)
    assert {path.name for path in first.iterdir()} == {
        "plan.json",
        "questions.jsonl",
        "run.json",
        "report.html",
        "report.md",
    }
    page = (first / "report.html").read_text()
    assert page.count("<div class='bars'>") == 2  # categories, subjects
    assert "<circle" in page  # calibration
    assert "src=" not in page
    # The table: averages of both widths, then what fewer bits cost.
    average = f"{100 * facts['accuracy']['average']['value']:.2f}"
    assert re.search(rf"average \(micro\) +{average}", done.stdout)
    assert "not comparable with the published table: 2 shots, the published table has 5" in done.stdout
    widths = done.stdout[done.stdout.index("mmlu by bits a weight") :].splitlines()
    assert widths[1].split()[:3] == ["bits", "accuracy,", "%"]
    assert widths[2].split() == ["16", average]
    assert widths[3].split()[0] == "8"
    # What reads the folders.
    assert run_leaderboard(str(tmp_path / "runs"), "MMLU", "Average", None, None, None, "markdown") == 0
    board = capsys.readouterr().out
    assert len(re.findall(r"smollm2-135m, (16|8)-bit \(yours, not ranked\)", board)) == 2
    assert "Baichuan-7B" in board
    assert run_compare(str(first), str(next(path for path in folders.values() if path != first)), 0) == 0
    assert "McNemar" in capsys.readouterr().out


def test_a_conversation_and_what_cannot_be_done(tmp_path: Path, capsys):
    def run_it(**changes: object) -> None:
        options = {"subjects": "anatomy", "bits": None, "mode": "base"} | changes
        given = (None, 5, None, options["subjects"], options["bits"], "cpu", "float32", str(tmp_path / "runs"), False)
        run_evaluate(str(tmp_path / "model"), "mmlu", str(tmp_path / "data"), "baichuan", *given, options["mode"])

    write_llama_folder(tmp_path / "model", max_position_embeddings=1024)
    write_many(tmp_path / "data", "mmlu", ["anatomy"], 3)
    run_it(mode="chat")
    assert "asked as a conversation" in capsys.readouterr().out
    (folder,) = (tmp_path / "runs").iterdir()
    assert "-chat-5shot-" in folder.name
    for changes, message in [
        ({"bits": "7"}, "--bits 7 is not known; give 16, 8, 4 or several with commas"),
        ({"subjects": None}, "abstract_algebra_test.csv cannot be read"),
        ({"mode": "talk"}, "--mode talk is not known"),
    ]:
        with pytest.raises(ChuanError, match=message):
            run_it(**changes)
