"""`chuan evaluate openai:MODEL` and `anthropic:MODEL`: real HTTP, a server on loopback."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from chuan.errors import ChuanError
from chuan.evaluation.evaluate_verb import run_evaluate
from tests.evaluation.tiny_data import write_many
from tests.support.api_server import Server

CHUAN = str(Path(sys.executable).with_name("chuan"))


def reply_in_turn(question: str) -> str:
    """The right letter of a made-up question, said in one of several ways; every fifth time nothing that is one."""
    text = question.rsplit("what is ", 1)[1]
    total = sum(int(part) for part in text.split("?")[0].split(" + "))
    letter = next(line[0] for line in text.splitlines() if line[1:] == f". {total}")
    ways = ["{}", "The answer is ({}).", "答案是{}。", "I cannot say.", "{}. It must be so.", "Either {} or another."]
    return ways[len(text) * 7 % 5 if total % 3 else 3].format(letter)


@pytest.fixture
def server():
    with Server(reply_in_turn) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret-key")


def find_options(server: Server, tmp_path: Path, provider: str) -> dict[str, Any]:
    return {
        "model": f"{provider}:m",
        "benchmark": "ceval",
        "split": "val",
        "subjects": "law,logic",
        "data": str(tmp_path / "data"),
        "output": str(tmp_path / "runs"),
        "base_url": server.url + ("/v1" if provider == "openai" else ""),
    }


def evaluate(server: Server, tmp_path: Path, provider: str, **options: Any) -> None:
    defaults = {"protocol": "baichuan", "shots": 5, "shuffle_seed": None, "bits": None, "device": "auto"}
    assert run_evaluate(**{**defaults, "dtype": "auto", **find_options(server, tmp_path, provider), **options}) == 0


def read(tmp_path: Path) -> tuple[Path, dict, list[dict]]:
    (folder,) = [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]
    lines = (folder / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return folder, json.loads((folder / "run.json").read_text()), [json.loads(line) for line in lines]


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_letters_are_read_from_replies_and_failures_are_counted(server: Server, tmp_path: Path, provider: str, capsys):
    write_many(tmp_path / "data", "ceval", ["law", "logic"], 15)
    evaluate(server, tmp_path, provider, prices="1000,10000", concurrency=3)
    shown = capsys.readouterr()
    folder, facts, rows = read(tmp_path)
    assert len(server.asked) == len(rows) == 30
    for row in rows:
        unsaid = row["reply"] == "I cannot say."
        assert row["predicted"] == (None if unsaid else row["gold"])
        assert row["correct"] is not unsaid
        assert row["scores"] is None
    failures = sum(row["predicted"] is None for row in rows)
    assert 0 < failures < 30
    assert facts["unextracted"] == failures
    assert facts["accuracy"]["categories"]["Humanities"]["questions"] == 30
    assert facts["mode"] == "chat"
    assert facts["comparable"] is False
    assert facts["tokens"] == {"input": 210, "output": 60}
    assert facts["backend"].startswith(f"{provider} at http://127.0.0.1")
    assert provider in facts["versions"]
    assert f"{failures} replies without an answer, counted as wrong" in shown.out
    assert "210 tokens of prompts and 60 of replies, paid for with 0.81" in shown.out
    assert shown.err == ""
    # The conversation as C-Eval's chatgpt.py has it: five demonstrations, the letter alone as the answer.
    _, body, _ = server.asked[0]
    turns = [turn for turn in body["messages"] if turn["role"] != "system"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 5 + ["user"]
    assert all(turn["content"] in "ABCD" for turn in turns[1::2])
    for path in (tmp_path / "runs").rglob("*"):
        assert path.is_dir() or b"secret-key" not in path.read_bytes()
    assert (folder / "report.html").is_file()


def test_a_run_that_broke_off_goes_on(server: Server, tmp_path: Path):
    write_many(tmp_path / "data", "ceval", ["law", "logic"], 15)
    server.troubles = [None] * 11 + [400]
    command = [CHUAN, "evaluate", "openai:m", "--concurrency", "1"]
    for name, value in find_options(server, tmp_path, "openai").items():
        command += [f"--{name.replace('_', '-')}", value] if name != "model" else []
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "openai:m did not answer" in done.stderr
    (folder,) = [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]
    assert not (folder / "run.json").exists()
    evaluate(server, tmp_path, "openai")
    asked = [json.dumps(body["messages"]) for _, body, _ in server.asked]
    assert len(set(asked)) == 30
    assert len(asked) == 31  # the one that was refused, again
    assert read(tmp_path)[1]["tokens"] == {"input": 210, "output": 60}


@pytest.mark.parametrize(
    ("options", "match"),
    [({"prices": "free"}, "--prices free is not known"), ({"bits": "8"}, "openai:m runs elsewhere")],
)
def test_what_makes_no_sense_is_one_line(server: Server, tmp_path: Path, options, match):
    write_many(tmp_path / "data", "ceval", ["law", "logic"], 2)
    with pytest.raises(ChuanError, match=match):
        evaluate(server, tmp_path, "openai", **options)
    assert server.asked == []
