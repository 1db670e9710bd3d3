"""What `chuan info` and `chuan convert` print of files that anybody may have written."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from chuan.inference.convert import convert
from chuan.terminal.convert import run_convert
from chuan.terminal.tables import print_info, print_models
from tests.checkpoints.test_adapter import write_adapter
from tests.support.folders import write_baichuan_folder
from tests.support.tiny_tokenizer import train_tiny_sentencepiece


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "model"
    write_baichuan_folder(path, model_file=train_tiny_sentencepiece(dummy_prefix=False), dtype=torch.bfloat16)
    return path


def read_rows(text: str) -> dict[str, str]:
    pairs = [line.split("  ", 1) for line in text.splitlines()]
    return {name.strip(): value.strip() for name, value in pairs}


def test_markup_and_control_sequences_are_shown_as_they_are(model: Path, tmp_path: Path, capsys):
    for name in ("m[/x]", "m[bold]", "m\x1b[31m"):
        source = tmp_path / name
        shutil.copytree(model, source)
        (source / "README.md").write_text('---\nlicense: "[/red]\\e[31m\\uD800"\n---\n')
        print_info(str(source))
        rows = read_rows(capsys.readouterr().out)
        assert rows["model"] == str(source).replace("\x1b", "\\x1b")
        assert rows["licence of the weights"] == "[/red]\\x1b[31m\\ud800"
        assert run_convert(str(source), str(tmp_path / "out" / name), "llama", None, None) == 0
        rows = read_rows(capsys.readouterr().out)
        assert rows["written"].endswith(name.replace("\x1b", "\\x1b"))
        assert rows["size"].endswith(" MB")


def test_sizes_of_small_models_are_no_zeros(model: Path, capsys):
    print_info(str(model))
    rows = read_rows(capsys.readouterr().out)
    assert rows["memory at 16 bits"] == "0.37 MB"
    print_models()
    out = capsys.readouterr().out
    assert "98.36 MB" in out
    assert "15.00 GB" in out


def test_info_of_a_gguf_says_its_type_and_base(model: Path, tmp_path: Path, capsys):
    source = tmp_path / "cache" / "models--me--tuned" / "snapshots" / ("a" * 40)
    shutil.copytree(model, source)
    convert(source, tmp_path / "m.gguf", gguf_type="q4_0")
    print_info(str(tmp_path / "m.gguf"))
    rows = read_rows(capsys.readouterr().out)
    assert rows["kind"] == "GGUF, Q4_0"
    assert rows["made from"] == f"me/tuned at revision {'a' * 40}"
    assert rows["licence of the weights"].startswith("Baichuan's own")


def test_info_of_an_adapter_says_what_it_changes(tmp_path: Path, capsys):
    write_adapter(tmp_path / "a", "baichuan", target_modules=["W_pack"])
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "x/[/y]"}))
    print_info(str(tmp_path / "a"))
    rows = read_rows(capsys.readouterr().out)
    assert rows["kind"].startswith("LoRA adapter")
    assert (rows["base model"], rows["rank"], rows["layers"]) == ("x/[/y]", "4", "W_pack")
