"""Calibrated conversion: closer to the source than nearest on text of the same kind; layouts; what is refused."""

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import chuan
from chuan.checkpoints.checkpoint import CheckpointSource
from chuan.inference.calibrate import LEAST_WINDOWS, MOST_WINDOWS, CalibratedSource, load_windows
from chuan.inference.convert import convert
from chuan.inference.load import open_checkpoint
from chuan.quantization.gptq import quantize_calibrated
from chuan.quantization.int4 import Int4Linear
from tests.support.folders import write_baichuan_folder, write_llama_folder
from tests.support.loading import load_logits, refusal
from tests.support.tiny_tokenizer import train_tiny_sentencepiece

WORDS = ["the", "river", "runs", "to", "sea", "and", "温故", "而知新", "可以", "为师矣", "百川", "东到海"]


def write_text(path: Path, words: int, seed: int = 0) -> Path:
    rng = random.Random(seed)
    path.write_text(" ".join(rng.choice(WORDS) for _ in range(words)), encoding="utf-8")
    return path


def measure_error(folder: Path, source: Path, text: Path) -> float:
    """Of the logits of a text, relative."""
    answers: list[Tensor] = []
    for path in (folder, source):
        model = chuan.load(path, device="cpu", dtype="float32")
        answers.append(model.logits(model.tokenizer.encode(text.read_text(encoding="utf-8"))[:100]))
    return float((answers[0] - answers[1]).norm() / answers[1].norm())


def test_logits_are_closer_than_with_nearest(tmp_path: Path):
    write_llama_folder(tmp_path / "m", hidden_size=96, intermediate_size=160)
    text, other = write_text(tmp_path / "text.txt", 4000), write_text(tmp_path / "other.txt", 200, seed=1)
    convert(tmp_path / "m", tmp_path / "nearest", bits=4)
    made = convert(tmp_path / "m", tmp_path / "fitted", bits=4, calibrate=text)
    assert made.checked.startswith("re-opened; ")
    assert open_checkpoint(tmp_path / "fitted").bits == 4
    nearest, fitted = (measure_error(tmp_path / name, tmp_path / "m", other) for name in ("nearest", "fitted"))
    assert fitted < 0.85 * nearest


def test_baichuans_joined_rows_and_its_own_layout(tmp_path: Path):
    write_baichuan_folder(tmp_path / "b", 2, model_file=train_tiny_sentencepiece(dummy_prefix=False))
    text = write_text(tmp_path / "text.txt", 4000)
    convert(tmp_path / "b", tmp_path / "llama", bits=4, calibrate=text)
    convert(tmp_path / "b", tmp_path / "baichuan", "baichuan", bits=4, calibrate=text)
    assert torch.equal(load_logits(tmp_path / "llama"), load_logits(tmp_path / "baichuan"))


def test_layers_see_what_the_rounded_ones_before_them_give(tmp_path: Path):
    """The last linear is fitted to the inputs that it has in the finished model."""
    write_llama_folder(tmp_path / "m", hidden_size=64, intermediate_size=96)
    model = chuan.load(tmp_path / "m", device="cpu", dtype="float32")
    windows = load_windows(write_text(tmp_path / "text.txt", 4000), model.tokenizer, 128)
    source = CalibratedSource(CheckpointSource(open_checkpoint(tmp_path / "m")), windows)
    inputs: list[Tensor] = []
    last = model.decoder.model.layers[-1].mlp.down_proj
    last.register_forward_pre_hook(lambda _, given: inputs.append(given[0].flatten(0, -2)))
    for name, linear in model.decoder.named_modules():
        if name.endswith("proj"):
            meant = source.read(f"{name}.weight")
            small = source.fit(f"{name}.weight", meant)
            assert isinstance(meant, Tensor)
            assert isinstance(small, Int4Linear)
            assert isinstance(linear, nn.Linear)
            linear.weight = nn.Parameter(small.dequantize(), requires_grad=False)
    with torch.inference_mode():
        model.decoder(windows)
    again = quantize_calibrated(meant, inputs[0].t() @ inputs[0])
    assert float((again.dequantize() == small.dequantize()).float().mean()) > 0.99  # but for the order of sums


def test_windows_are_spread_over_the_text_and_begin_as_a_prompt_does(tmp_path: Path):
    write_llama_folder(tmp_path / "m")
    tokenizer = chuan.load(tmp_path / "m", device="cpu").tokenizer
    text = write_text(tmp_path / "text.txt", 40_000)
    ids = tokenizer.encode(text.read_text(encoding="utf-8"))
    windows = load_windows(text, tokenizer, 64)
    prefix = len(tokenizer.prompt_prefix)
    assert windows.shape == (MOST_WINDOWS, 64)
    assert windows[0, prefix:].tolist() == ids[: 64 - prefix]
    assert windows[-1, prefix:].tolist() == ids[-(64 - prefix) :]
    assert windows[:, :prefix].tolist() == [list(tokenizer.prompt_prefix)] * MOST_WINDOWS


def test_what_cannot_be_calibrated_is_one_line_and_leaves_nothing(tmp_path: Path):
    write_llama_folder(tmp_path / "m")
    text, short = write_text(tmp_path / "text.txt", 4000), write_text(tmp_path / "short.txt", 100)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")

    def calibrate(path: Path, to: str = "llama", bits: int | None = 4, source: str = "m") -> str:
        message = refusal(lambda: convert(tmp_path / source, tmp_path / "x", to, bits, calibrate=path))  # type: ignore[arg-type]
        assert not (tmp_path / "x").exists()
        return message

    assert f"calibration needs {LEAST_WINDOWS * 256} at least" in calibrate(short)
    assert "No such file" in calibrate(tmp_path / "none.txt")
    assert "Is a directory" in calibrate(tmp_path)
    assert "is not UTF-8 text" in calibrate(tmp_path / "binary")
    assert "--calibrate is for folders of 4 bits" in calibrate(text, bits=8)
    assert "--calibrate is for folders of 4 bits" in calibrate(text, bits=None)
    assert "--calibrate is for folders of 4 bits" in calibrate(text, to="gguf")
    convert(tmp_path / "m", tmp_path / "four", bits=4)
    assert "has 4 bits already" in calibrate(text, source="four")


@pytest.mark.parametrize("wide", [40, 48])
def test_a_width_that_groups_do_not_divide_is_refused(tmp_path: Path, wide: int):
    write_llama_folder(tmp_path / "m", intermediate_size=wide)
    text = write_text(tmp_path / "text.txt", 4000)
    message = refusal(lambda: convert(tmp_path / "m", tmp_path / "x", bits=4, calibrate=text))
    assert f"groups of 32 do not divide a width of {wide}; use bits=8" in message
    assert not (tmp_path / "x").exists()
