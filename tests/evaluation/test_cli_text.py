"""`chuan evaluate --text`: tables, JSON and plot on a tiny model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import chuan
from chuan.errors import ChuanError
from chuan.evaluation.perplexity import measure_languages, measure_positions
from chuan.evaluation.text_verb import run_text
from tests.support.folders import write_llama_folder

CHUAN = str(Path(sys.executable).with_name("chuan"))
TEXT = "The river ran on.\r\n温故而知新，可以为师矣。\n" * 30


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_llama_folder(tmp_path / "model")
    (tmp_path / "book.txt").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    return tmp_path


def run(place: Path, text: str = "book.txt", context=None, stride=None, longest=None, bits=None, model: str = "model"):
    options = (context, stride, longest, bits, "cpu", "float32", str(place / "runs"))
    return run_text(model if ":" in model else str(place / model), str(place / text), *options)


def test_figures_table_and_plot(place: Path, capsys):
    """The context is 256; windows of 400 tokens show what is beyond."""
    assert run(place, context=100, stride=30, longest=400, bits="16,8") == 0
    out = capsys.readouterr().out
    folders = sorted((place / "runs").iterdir())
    assert [folder.name.rsplit("-", 2)[1:] for folder in folders] == [["16bit", "float32"], ["8bit", "float32"]]
    facts = json.loads((folders[0] / "text.json").read_text())
    model = chuan.load(place / "model", dtype="float32", device="cpu")
    expected = measure_languages(model.decoder, model.tokenizer, TEXT, 100, 30)
    assert facts["languages"].keys() == expected.keys() == {"zh", "other", "all"}
    for name, loss in expected.items():
        found = facts["languages"][name]
        assert (found["tokens"], found["bytes"]) == (loss.tokens, loss.size)
        assert found["perplexity"] == pytest.approx(loss.perplexity)
        assert found["bits_per_byte"] == pytest.approx(loss.bits_per_byte)
        assert f"{loss.perplexity:,.3f}" in out
    ids = [*model.tokenizer.prompt_prefix, *model.tokenizer.encode(TEXT)]
    buckets = measure_positions(model.decoder, ids, 400, 50)
    assert [part["loss"] for part in facts["positions"]] == pytest.approx([bucket.loss for bucket in buckets])
    assert facts["positions"][-1]["last"] == 399
    assert "windows of 400 tokens, trained on 256" in out
    assert "351 to 399" in out
    for folder in folders:
        assert (folder / "positions.png").read_bytes().startswith(b"\x89PNG")
        assert str(folder) in out
    eight = json.loads((folders[1] / "text.json").read_text())
    assert eight["languages"]["all"]["nats"] != facts["languages"]["all"]["nats"]
    assert (facts["context"], facts["stride"], facts["window"], facts["trained_context"]) == (100, 30, 400, 256)


def test_a_text_shorter_than_the_context_is_one_window(place: Path, capsys):
    (place / "short.txt").write_text("The river ran on.")
    assert run(place, "short.txt") == 0
    (folder,) = (place / "runs").iterdir()
    facts = json.loads((folder / "text.json").read_text())
    assert facts["languages"]["all"] == facts["languages"]["other"]
    assert sum(part["tokens"] for part in facts["positions"]) == facts["window"] - 1 < 30


def test_what_cannot_be_read_is_one_line(place: Path):
    (place / "latin.txt").write_bytes(b"caf\xe9")
    (place / "empty.txt").write_text("\n \n")
    for options, message in [
        ({"text": "none.txt"}, "none.txt cannot be read"),
        ({"text": "latin.txt"}, "is not UTF-8"),
        ({"text": "empty.txt"}, "the text is empty"),
        ({"stride": 300}, "a stride of 300 does not fit a context of 256"),
        ({"longest": 1}, "--longest 1 leaves nothing to predict"),
        ({"longest": 5000}, "fewer than --longest 5,000; give a longer text"),
        ({"model": "hf:model"}, "name model without hf:"),
    ]:
        with pytest.raises(ChuanError, match=message):
            run(place, **options)
    assert not (place / "runs").exists()


def test_the_command(place: Path):
    arguments = [CHUAN, "evaluate", str(place / "model"), "--output", str(place / "runs")]
    done = subprocess.run([*arguments, "--text", str(place / "book.txt")], capture_output=True, timeout=300, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "bits a byte" in done.stdout
    done = subprocess.run(arguments, capture_output=True, timeout=300, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "--benchmark NAME, or --text FILE" in done.stderr
