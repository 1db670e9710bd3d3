"""Runs that are killed go on: real processes, kill -9, and what is in the folder afterwards."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chuan.errors import ChuanError
from chuan.evaluation.evaluate import build_plan, load_plan, run_plan
from chuan.evaluation.evaluate_verb import run_evaluate
from chuan.evaluation.runs import read_questions
from tests.evaluation.counting import CountingBackend
from tests.evaluation.tiny_data import write_many
from tests.support.folders import write_llama_folder

CHUAN = str(Path(sys.executable).with_name("chuan"))
SUBJECTS = ["anatomy", "sociology", "virology", "world_religions"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("resume")
    write_many(path / "data", "mmlu", SUBJECTS, 500)
    write_llama_folder(path / "model", max_position_embeddings=2048)
    return path


def evaluate(place: Path, output: Path, *more: str) -> subprocess.Popen[bytes]:
    options = ["--data", str(place / "data"), "--subjects", ",".join(SUBJECTS), "--output", str(output), *more]
    return subprocess.Popen(
        [CHUAN, "evaluate", str(place / "model"), "--benchmark", "mmlu", "--bits", "8", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def read_keys(log: Path) -> list[tuple[str, str]]:
    lines = log.read_bytes().split(b"\n")[:-1] if log.exists() else []
    rows = [json.loads(line) for line in lines]
    return [(row["subject"], row["id"]) for row in rows]


def test_a_run_killed_twice_goes_on_and_ends_the_same(place: Path, tmp_path: Path):
    """In 8 bits, where a score has the same bits in whatever company a prompt is read."""
    asked = (None, 5, None, ",".join(SUBJECTS), "8", "auto", "auto", str(tmp_path / "whole"))
    assert run_evaluate(str(place / "model"), "mmlu", str(place / "data"), "baichuan", *asked) == 0
    (whole,) = (tmp_path / "whole").iterdir()
    folder = tmp_path / "killed" / whole.name
    known: list[tuple[str, str]] = []
    for _ in range(2):
        process = evaluate(place, tmp_path / "killed")
        while process.poll() is None and len(read_keys(folder / "questions.jsonl")) < len(known) + 200:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.communicate()
        assert not (folder / "run.json").exists()
        keys = read_keys(folder / "questions.jsonl")
        assert len(known) + 200 <= len(keys) == len(set(keys))
        assert keys[: len(known)] == known
        known = keys
    assert evaluate(place, tmp_path / "killed").wait(timeout=300) == 0
    for name in ("questions.jsonl", "plan.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    facts, others = (json.loads((at / "run.json").read_text()) for at in (whole, folder))
    assert facts.pop("date")
    assert others.pop("date")
    assert others == facts
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_only_what_is_open_is_asked(place: Path, tmp_path: Path):
    plan = build_plan("mmlu", "baichuan", None, 5, None, "anatomy,virology", place / "data")
    whole = CountingBackend()
    run_plan(plan, load_plan(plan), whole, tmp_path / "whole")
    assert len(whole.asked) == 1000
    first, second, third = CountingBackend(stop_after=250), CountingBackend(stop_after=100), CountingBackend()
    for backend in (first, second):
        with pytest.raises(KeyboardInterrupt):
            run_plan(plan, load_plan(plan), backend, tmp_path / "parts")
    heard = []
    run_plan(plan, load_plan(plan), third, tmp_path / "parts", lambda *counts: heard.append(counts))
    assert sorted(first.asked + second.asked + third.asked) == sorted(whole.asked)
    assert heard[0][:2] == (350, 1000)
    assert heard[-1] == (1000, 1000, sum(row["correct"] for row in read_questions(tmp_path / "whole")))
    assert read_questions(tmp_path / "parts") == read_questions(tmp_path / "whole")
    # A run that is done asks nothing, and what it says stays.
    fourth = CountingBackend()
    facts = run_plan(plan, load_plan(plan), fourth, tmp_path / "parts")
    assert facts == json.loads((tmp_path / "parts/run.json").read_text())
    assert fourth.asked == []


def test_a_line_that_was_cut_is_asked_again(place: Path, tmp_path: Path):
    plan = build_plan("mmlu", "baichuan", None, 5, None, "anatomy", place / "data")
    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, load_plan(plan), CountingBackend(stop_after=20), tmp_path / "run")
    log = tmp_path / "run/questions.jsonl"
    log.write_bytes(log.read_bytes()[:-30])
    backend = CountingBackend()
    run_plan(plan, load_plan(plan), backend, tmp_path / "run")
    assert len(backend.asked) == 500 - 19
    assert len(read_questions(tmp_path / "run")) == 500


def test_another_run_is_refused_in_the_same_folder(place: Path, tmp_path: Path):
    plan = build_plan("mmlu", "baichuan", None, 5, None, "anatomy", place / "data")
    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, load_plan(plan), CountingBackend(stop_after=20), tmp_path / "run")
    before = (tmp_path / "run/questions.jsonl").read_bytes()
    for changed, backend, what in [
        (build_plan("mmlu", "official", None, 5, None, "anatomy", place / "data"), CountingBackend(), "protocol"),
        (build_plan("mmlu", "baichuan", None, 4, None, "anatomy", place / "data"), CountingBackend(), "shots, data"),
        (build_plan("mmlu", "baichuan", None, 5, 1, "anatomy", place / "data"), CountingBackend(), "seed"),
        (build_plan("mmlu", "baichuan", None, 5, None, "virology", place / "data"), CountingBackend(), "subject_names"),
        (plan, CountingBackend("another"), "model"),
    ]:
        with pytest.raises(ChuanError, match=f"run of another {what}.*choose another --output"):
            run_plan(changed, load_plan(changed), backend, tmp_path / "run")
        assert backend.asked == []
    assert (tmp_path / "run/questions.jsonl").read_bytes() == before


def test_other_data_and_other_weights_are_another_run(tmp_path: Path):
    def run(model: Path = tmp_path / "model", bits: str | None = None) -> None:
        options = (None, 5, None, "anatomy", bits, "cpu", "float32", str(tmp_path / "runs"))
        assert run_evaluate(str(model), "mmlu", str(tmp_path / "data"), "baichuan", *options) == 0

    write_many(tmp_path / "data", "mmlu", ["anatomy"], 8)
    write_llama_folder(tmp_path / "model", max_position_embeddings=2048)
    run()
    run()
    run(bits="8,4")
    assert len(list((tmp_path / "runs").iterdir())) == 3
    path = tmp_path / "data/mmlu/data/test/anatomy_test.csv"
    original = path.read_bytes()
    path.write_bytes(original.replace(b"apples", b"lemons"))
    with pytest.raises(ChuanError, match="another data"):
        run()
    path.write_bytes(original)
    write_llama_folder(tmp_path / "model", max_position_embeddings=2048, seed=1)
    with pytest.raises(ChuanError, match="another weights_sha256"):
        run()


def test_damage_and_company_are_one_line(place: Path, tmp_path: Path):
    plan = build_plan("mmlu", "baichuan", None, 5, None, "anatomy", place / "data")
    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, load_plan(plan), CountingBackend(stop_after=20), tmp_path / "run")
    log = tmp_path / "run/questions.jsonl"
    content = log.read_bytes()
    for damaged in (b"\0" * 10 + b"\n", b"[]\n", b'{"subject": "anatomy"}\n', b"\xff\n"):
        log.write_bytes(content + damaged)
        with pytest.raises(ChuanError, match=r"questions\.jsonl is damaged; remove"):
            run_plan(plan, load_plan(plan), CountingBackend(), tmp_path / "run")
    log.write_bytes(content)

    class Meeting(CountingBackend):
        """Looks in while the run is under way."""

        def find_letters(self, form):
            with pytest.raises(ChuanError, match="another process is writing"):
                run_plan(plan, load_plan(plan), CountingBackend(), tmp_path / "run")
            return super().find_letters(form)

    run_plan(plan, load_plan(plan), Meeting(), tmp_path / "run")
    (tmp_path / "file").touch()
    with pytest.raises(ChuanError, match="cannot be written"):
        run_plan(plan, load_plan(plan), CountingBackend(), tmp_path / "file" / "run")
