"""What stands on stdout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chuan.errors import ChuanError
from chuan.inference import bench
from chuan.inference.bench import BenchResult, Limits, Speed
from chuan.terminal.bench import print_result, read_counts, render_json, run_bench_command
from tests.support.folders import write_baichuan_folder
from tests.support.tiny_tokenizer import train_tiny_sentencepiece

RESULT = BenchResult(
    model="a 7b",
    device="cpu",
    dtype="bfloat16",
    bits=8,
    threads=2,
    weight_bytes=7_000_000_000,
    load_seconds=2.5,
    first_token_seconds=0.75,
    peak_memory=9_000_000_000,
    speeds=(
        Speed("prefill", 1, 256, 4.0, 8_000_000_000, 1_600_000_000_000),
        Speed("decode", 8, 512, 16.0, 240_000_000_000, 6_400_000_000_000),
    ),
    limits=Limits(30e9, 800e9),
)


def test_the_table(capsys: pytest.CaptureFixture[str]):
    print_result(RESULT)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "weights 7.00 GB" in lines
    assert "prefill, 256 tokens 64.0 2.0 7% 400 50%" in lines
    assert "decode, 8 sequences behind 128 tokens 32.0 15.0 50% 400 50%" in lines
    assert "what this machine reaches 30.0 800" in lines


def test_json_has_every_figure_and_its_rate():
    table = json.loads(render_json(RESULT))
    assert table["limits"] == {"bandwidth": 30e9, "rate": 800e9}
    assert table["peak_memory"] == 9_000_000_000
    prefill, decode = table["speeds"]
    assert (prefill["phase"], prefill["tokens"], prefill["seconds"]) == ("prefill", 256, 4.0)
    assert (decode["sequences"], decode["tokens_per_second"], decode["bandwidth"]) == (8, 32.0, 15e9)


def test_the_command_on_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench, "measure_bandwidth", lambda device: 1e9)
    write_baichuan_folder(tmp_path / "tiny", model_file=train_tiny_sentencepiece())
    assert run_bench_command(str(tmp_path / "tiny"), 8, "cpu", "float32", 40, 4, "1,2", as_json=True) == 0
    out, err = capsys.readouterr()
    assert err == ""
    table = json.loads(out)
    assert (table["bits"], table["dtype"], table["device"]) == (8, "float32", "cpu")
    assert [(speed["phase"], speed["sequences"], speed["tokens"]) for speed in table["speeds"]] == [
        ("prefill", 1, 40),
        ("decode", 1, 4),
        ("decode", 2, 8),
    ]
    assert run_bench_command(str(tmp_path / "tiny"), None, "cpu", "float32", 40, 4, "2", as_json=False) == 0
    assert "decode, 2 sequences behind 128 tokens" in capsys.readouterr().out


def test_sequences_are_counts():
    assert read_counts("1, 8,16") == [1, 8, 16]
    for wrong in ("", "1,", "0", "-1", "two", "65", "1.5", "²"):
        with pytest.raises(ChuanError, match="such as 1,8"):
            read_counts(wrong)
