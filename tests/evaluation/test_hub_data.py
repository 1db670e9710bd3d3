"""Benchmarks from a hub on loopback, by the real hub library, each in a new process (HF_* is read at import)."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from chuan.errors import ChuanError
from chuan.evaluation.hub_data import fetch_benchmark
from tests.support.folders import write_llama_folder
from tests.support.hub_server import HubServer

CODE = """
import json, sys
from chuan.errors import ChuanError
from chuan.evaluation.hub_data import fetch_benchmark
from chuan.tasks.benchmarks import load_questions
benchmark, subject, *splits = sys.argv[1:]
try:
    folder, revision = fetch_benchmark(benchmark, [subject], splits)
except ChuanError as error:
    sys.exit(str(error))
found = [[q.question, *q.choices, *q.answers] for s in splits for q in load_questions(benchmark, folder, [subject], s)]
print(json.dumps([revision, found]))
"""
ROWS = [['Is it, "so"?\r\nSay.', "None", " b", "c", "d", "A"], ["川?", "1", "2", "3", "4", "D"]]


def parquet(rows: list[dict]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def as_mmlu(rows: list[list[str]]) -> bytes:
    return parquet([{"question": q, "subject": "law", "choices": c, "answer": "ABCD".index(a)} for q, *c, a in rows])


def as_ceval(rows: list[list[str]], labelled: bool = True) -> bytes:
    return parquet(
        [
            dict(zip("ABCD", c, strict=True))
            | {"id": n, "question": q, "answer": a if labelled else "", "explanation": "because"}
            for n, (q, *c, a) in enumerate(rows)
        ]
    )


REPOSITORIES = {
    "datasets/cais/mmlu": {
        "anatomy/dev-00000-of-00001.parquet": as_mmlu(ROWS[:1]),
        "anatomy/validation-00000-of-00001.parquet": as_mmlu(ROWS[1:]),
        "anatomy/test-00000-of-00001.parquet": as_mmlu(ROWS),
        "odd/test-00000-of-00001.parquet": parquet([{"text": "a"}]),
        "odd/dev-00000-of-00001.parquet": b"no parquet",
        "anatomy/auxiliary-00000-of-00001.parquet": b"not asked for",
    },
    "datasets/ceval/ceval-exam": {
        "law/dev-00000-of-00001.parquet": as_ceval(ROWS[:1]),
        "law/test-00000-of-00001.parquet": as_ceval(ROWS, labelled=False),
    },
}


def run(code: list[str], home: Path, endpoint: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, **environment}
    return subprocess.run(
        [sys.executable, *code], capture_output=True, text=True, env=inherited | settings, timeout=300
    )


def fetch(benchmark: str, subject: str, home: Path, endpoint: str, *splits: str, **environment: str):
    return run(["-c", CODE, benchmark, subject, *splits], home, endpoint, **environment)


def test_the_hubs_files_hold_the_same_questions_and_are_fetched_once(tmp_path):
    expected = [[row[0].replace("\r\n", "\n"), *row[1:]] for row in ROWS[:1] + ROWS]
    with HubServer(REPOSITORIES) as hub:
        done = fetch("mmlu", "anatomy", tmp_path, hub.endpoint, "dev", "test")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == [HubServer.COMMIT, expected]
        assert not hub.asked("auxiliary")
        asked = len(hub.asked("/resolve/"))
        done = fetch("mmlu", "anatomy", tmp_path, hub.endpoint, "dev", "test", HF_HUB_OFFLINE="1")
        assert json.loads(done.stdout) == [HubServer.COMMIT, expected]
        assert len(hub.asked("/resolve/")) == asked
        done = fetch("ceval", "law", tmp_path, hub.endpoint, "test")
        assert [row[-1] for row in json.loads(done.stdout)[1]] == ["d", "4"]  # no labels, none made up
        done = fetch("ceval", "law", tmp_path, hub.endpoint, "dev")
        assert json.loads(done.stdout)[1] == expected[:1]


def test_what_is_missing_or_of_another_form_is_one_line(tmp_path):
    with HubServer(REPOSITORIES) as hub:
        for subject, split, reason in [
            ("gone", "test", "has no gone, test"),
            ("odd", "test", "not in the form"),
            ("odd", "dev", "not in the form"),
        ]:
            done = fetch("mmlu", subject, tmp_path, hub.endpoint, split)
            assert done.returncode == 1
            assert reason in done.stderr
            assert "Traceback" not in done.stderr
        endpoint = hub.endpoint
    done = fetch("mmlu", "anatomy", tmp_path / "new", endpoint, "test")
    assert "cais/mmlu is not in the cache and the hub cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


def test_other_benchmarks_want_a_folder():
    with pytest.raises(ChuanError, match="name its folder as --data"):
        fetch_benchmark("agieval", ["sat-math"], ["test"])


def test_a_run_without_data_asks_the_hub_and_writes_its_revision_down(tmp_path):
    write_llama_folder(tmp_path / "model", max_position_embeddings=1024)
    files = {f"anatomy/{split}-00000-of-00001.parquet": as_mmlu(ROWS) for split in ("dev", "test")}
    options = ["--benchmark", "mmlu", "--subjects", "anatomy", "--shots", "1", "--output", str(tmp_path / "runs")]
    with HubServer({"datasets/cais/mmlu": files}) as hub:
        done = run(["-m", "chuan", "evaluate", str(tmp_path / "model"), *options], tmp_path / "home", hub.endpoint)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "runs").glob("*/run.json")
    data = json.loads(path.read_text())["data"]
    assert (data["source"], data["revision"]) == ("hub: cais/mmlu", HubServer.COMMIT)
