"""What was verified on this machine: once, until a file changes."""

from pathlib import Path

import pytest
import torch

from chuan.checkpoints import weights
from chuan.checkpoints.ledger import Ledger
from chuan.checkpoints.save import Extras, save_folder
from chuan.checkpoints.source import DecoderSource
from chuan.checkpoints.weights import open_tensor_files
from chuan.model.config import ModelConfig
from chuan.model.decoder import Decoder
from tests.support.loading import load_logits, refusal


@pytest.fixture
def ledgers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("chuan.checkpoints.ledger.user_cache_path", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache" / "chuan" / "verified"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A number for every checksum that was computed."""
    calls: list[int] = []
    checksum = weights.checksum

    def count(tensor: torch.Tensor) -> int:
        calls.append(tensor.numel())
        return checksum(tensor)

    monkeypatch.setattr("chuan.checkpoints.weights.checksum", count)
    return calls


def save(path: Path, layout: str = "llama") -> Path:
    config = ModelConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    save_folder(path, DecoderSource(Decoder(config)), None, Extras(), layout)  # type: ignore[arg-type]
    return path / "model.safetensors"


def test_a_ledger_that_is_damaged_or_cannot_be_written_is_none(tmp_path: Path, ledgers: Path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("x")
    Ledger(tmp_path).note(file, "a")
    assert Ledger(tmp_path).knows(file, "a")
    assert not Ledger(tmp_path).knows(file, "b")
    (ledger,) = ledgers.iterdir()
    for damage in ("{", "[]", '{"file": 1}'):
        ledger.write_text(damage)
        assert not Ledger(tmp_path).knows(file, "a")
    monkeypatch.setattr("chuan.checkpoints.ledger.user_cache_path", lambda name: file / name)
    Ledger(tmp_path).note(file, "a")


@pytest.mark.parametrize("layout", ["llama", "baichuan"])
def test_a_file_is_verified_once(tmp_path: Path, ledgers: Path, counted: list[int], layout: str):
    path = save(tmp_path / "model", layout)
    assert not ledgers.exists()  # what was read back while it was written has no lasting name
    counted.clear()
    first = load_logits(path.parent)
    assert counted
    counted.clear()
    assert torch.equal(load_logits(path.parent), first)
    assert counted == []


def test_a_file_that_was_read_in_part_is_verified_again(tmp_path: Path, ledgers: Path, counted: list[int]):
    path = save(tmp_path / "model")
    open_tensor_files(path.parent).read("model.norm.weight")
    counted.clear()
    load_logits(path.parent)
    assert len(counted) == 2 * 9 + 3


def test_a_changed_byte_is_found_after_all(tmp_path: Path, ledgers: Path):
    path = save(tmp_path / "model")
    load_logits(path.parent)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for _ in range(2):  # nothing is noted of a file that was wrong
        assert f"{path} is damaged: the checksum of " in refusal(load_logits, path.parent)
