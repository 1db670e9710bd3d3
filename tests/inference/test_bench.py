"""What is counted is right, computed another way; what is measured runs, and leaves the model as it was."""

from __future__ import annotations

import mmap
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import chuan
from chuan.errors import ChuanError
from chuan.inference import bench
from chuan.inference.language_model import LanguageModel
from chuan.inference.runner import Piece
from chuan.model.config import PRESETS
from chuan.model.decoder import Decoder
from chuan.quantization.methods import find_bits
from tests.support.folders import write_baichuan_folder
from tests.support.tiny import build_tiny_config
from tests.support.tiny_tokenizer import train_tiny_sentencepiece


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of context 256, no base model."""
    path = tmp_path_factory.mktemp("bench") / "tiny"
    write_baichuan_folder(path, model_file=train_tiny_sentencepiece())
    return path


@pytest.fixture
def model(folder: Path) -> LanguageModel:
    return chuan.load(folder, device="cpu", dtype="float32")


class Counted:
    """A runner that remembers its pieces."""

    def __init__(self, model: LanguageModel) -> None:
        self.runner = model.engine.runner
        self.steps: list[list[Piece]] = []
        self.config, self.page_count, self.chunk = self.runner.config, self.runner.page_count, self.runner.chunk
        model.engine.runner = self

    def run(self, pieces: list[Piece]) -> torch.Tensor:
        self.steps.append([Piece(tuple(p.token_ids), p.past, tuple(p.pages), p.keep) for p in pieces])
        return self.runner.run(pieces)

    def copy_page(self, source: int, target: int) -> None:
        self.runner.copy_page(source, target)

    @property
    def keys_read(self) -> int:
        return sum(piece.past + len(piece.token_ids) for step in self.steps for piece in step)


@pytest.mark.parametrize("tokens", [1, 7, 40])
@pytest.mark.parametrize("heads", [4, 2])
def test_operations_are_what_torch_counts(tokens: int, heads: int):
    """torch counts every product of matrices, and attention in full, where half of it is masked."""
    config = build_tiny_config(num_key_value_heads=heads)
    decoder = Decoder(config).eval()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.inference_mode():
        decoder(torch.zeros(1, tokens, dtype=torch.long), logits_to_keep=1)
    width = config.num_attention_heads * config.head_dim
    masked = 4 * config.num_hidden_layers * width * tokens * (tokens - 1) // 2
    assert bench.count_operations(config, tokens) == counter.get_total_flops() - masked


def test_operations_of_tokens_one_by_one_are_those_of_a_prompt():
    config = build_tiny_config()
    head = 2 * config.vocab_size * config.hidden_size
    alone = sum(bench.count_operations(config, 1, past) for past in range(20))
    assert alone - 20 * head == bench.count_operations(config, 20) - head


def test_a_7b_reads_what_its_card_says():
    """All parameters but the embedding; two operations each, and attention."""
    config = PRESETS["baichuan-7b"]
    with torch.device("meta"):
        decoder = Decoder(config).bfloat16()
    used = config.parameter_count - 64000 * 4096
    # On the meta device every tensor has the address 0, so that only sizes can be looked at.
    assert sum(weight.nbytes for weight in decoder.parameters()) - 2 * 64000 * 4096 == 2 * used
    norms = 65 * 4096
    assert bench.count_operations(config, 1) == 2 * (used - norms) + 4 * 32 * 4096


@pytest.mark.parametrize("tied", [True, False])
def test_a_step_reads_every_weight_once_and_the_embedding_only_as_a_head(tied: bool):
    decoder = Decoder(build_tiny_config(tie_word_embeddings=tied))
    linears = [module for module in decoder.modules() if isinstance(module, nn.Linear)]
    norms = [weight for name, weight in decoder.named_parameters() if name.endswith("norm.weight")]
    read = sum(linear.weight.numel() for linear in linears) + sum(norm.numel() for norm in norms)
    assert bench.count_step_bytes(decoder) == 4 * read
    assert bench.count_weight_bytes(decoder) == 4 * (read + (0 if tied else 307 * 48))


@pytest.mark.parametrize("bits", [8, 4])
def test_few_bits_are_counted_as_few(folder: Path, bits: int):
    """Between what the linears take alone, and half as much again for scales and for panels that are filled up."""
    model = chuan.load(folder, device="cpu", dtype="float32", bits=bits)
    assert find_bits(model.decoder) == bits
    config = model.decoder.config
    linears = config.num_hidden_layers * (4 * 64 * 64 + 3 * 64 * 96)
    rest = [model.decoder.model.embed_tokens, model.decoder.model.norm, model.decoder.lm_head]
    rest += [m for name, m in model.decoder.named_modules() if ".layers." in name and name.endswith("norm")]
    tensors = [tensor for module in rest for tensor in (*module.parameters(), *module.buffers())]
    few = bench.count_weight_bytes(model.decoder) - sum(tensor.nbytes for tensor in tensors)
    assert linears * bits / 8 < few < 1.5 * linears * bits / 8 + 64 * linears / 64


def test_the_cache_is_counted_as_the_model_keeps_it(model: LanguageModel):
    assert bench.count_cache_bytes(model) == 2 * 2 * 64 * 4  # keys and values, layers, width, float32


def test_prefill_counts_what_ran(model: LanguageModel):
    counted = Counted(model)
    speed = bench.measure_prefill(model, 100)
    assert sum(len(piece.token_ids) for step in counted.steps for piece in step) == speed.tokens == 100
    weights = len(counted.steps) * bench.count_step_bytes(model.decoder)
    assert speed.bytes_read == weights + counted.keys_read * bench.count_cache_bytes(model)
    assert speed.operations == bench.count_operations(model.decoder.config, 100)
    assert speed.tokens_per_second == pytest.approx(100 / speed.seconds)


@pytest.mark.parametrize("sequences", [1, 8])
def test_decode_counts_what_ran(model: LanguageModel, sequences: int):
    counted = Counted(model)
    speed = bench.measure_decode(model, 100, 5, sequences)
    counted.steps = counted.steps[-5:]
    assert all(len(step) == sequences for step in counted.steps)
    assert all(len(piece.token_ids) == piece.keep == 1 for step in counted.steps for piece in step)
    assert speed.tokens == 5 * sequences
    weights = 5 * bench.count_step_bytes(model.decoder)
    assert speed.bytes_read == weights + counted.keys_read * bench.count_cache_bytes(model)
    config = model.decoder.config
    pasts = [piece.past for step in counted.steps for piece in step]
    assert speed.operations == sum(bench.count_operations(config, 1, past) for past in pasts)
    assert min(pasts) >= 100


def test_a_step_of_rows_reads_the_rows_alone(model: LanguageModel):
    counted = Counted(model)
    assert bench.measure_rows(model, 128, 5, repeats=2) > 0
    for (piece,) in counted.steps[-2:]:
        assert (piece.past, len(piece.token_ids), piece.keep) == (128, 5, 5)


def test_a_measured_model_answers_as_before(model: LanguageModel):
    prompt = "the river runs to sea and you are " * 4
    before = model.generate(prompt, max_new_tokens=20, temperature=0)
    bench.measure_decode(model, 60, 4, 3)
    assert model.generate(prompt, max_new_tokens=20, temperature=0) == before


def test_all_of_it(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench, "measure_bandwidth", lambda device: 1e9)
    heard: list[str] = []
    result = bench.run_bench(
        str(folder), bits=8, device="cpu", prompt_tokens=50, new_tokens=4, sequences=(1, 3), progress=heard.append
    )
    assert [(speed.phase, speed.sequences, speed.tokens) for speed in result.speeds] == [
        ("prefill", 1, 50),
        ("decode", 1, 4),
        ("decode", 3, 12),
    ]
    assert (result.bits, result.device, result.limits.bandwidth) == (8, "cpu", 1e9)
    assert result.limits.rate > 0
    assert result.peak_memory > result.weight_bytes
    assert {"loading", "first token", "prefill, 50 tokens", "decode, 3 together"} <= set(heard)


def test_peak_memory_sees_what_came_and_went():
    with bench.PeakMemory() as memory:
        before = bench.read_anonymous_memory()
        block = mmap.mmap(
            -1, 64 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        )  # fresh pages; malloc may have old ones to give
        block.write(b"x" * len(block))
        deadline = time.monotonic() + 30
        while memory.peak < before + (60 << 20) and time.monotonic() < deadline:  # until it has been sampled
            torch.ones(1 << 20).sum()
        block.close()
    assert memory.peak >= before + (60 << 20)


@pytest.mark.parametrize("wrong", [{"prompt_tokens": 256}, {"new_tokens": 200}, {"new_tokens": 0}, {"sequences": ()}])
def test_what_cannot_be_measured_is_said(folder: Path, wrong: dict):
    with pytest.raises(ChuanError, match="token"):
        bench.run_bench(str(folder), device="cpu", **({"prompt_tokens": 20, "new_tokens": 4} | wrong))


def test_limits_are_of_their_size():
    """A buffer and a linear whose work is known."""
    assert bench.measure_bandwidth(torch.device("cpu"), 1 << 22) > 1e6
    assert bench.measure_rate(Decoder(build_tiny_config()), width=64) > 1e5
