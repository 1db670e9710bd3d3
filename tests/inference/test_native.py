"""Whole layers by the compiled kernels: against the plain decoder, and alone against in company."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from chuan.checkpoints.checkpoint import load_decoder
from chuan.checkpoints.folder import open_folder
from chuan.checkpoints.save import Extras, save_folder
from chuan.checkpoints.source import DecoderSource
from chuan.inference.native import NativeRunner
from chuan.inference.runner import Piece, TorchRunner
from chuan.model.decoder import Decoder
from chuan.quantization.integer import IntegerLinear, apply_integer_arithmetic
from chuan.quantization.kernels.bindings import load_kernels
from chuan.quantization.methods import apply_quantization
from tests.quantization.test_integer import KERNELS
from tests.support.tiny import build_tiny_config, build_tiny_decoder

SHAPE = {
    "hidden_size": 96,
    "intermediate_size": 192,
    "head_dim": 16,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
PAGES = 24


def build(bits: int, **changes):
    config = build_tiny_config(**(SHAPE | changes))
    decoder = build_tiny_decoder(config)
    apply_quantization(decoder, bits)
    apply_integer_arithmetic(decoder)
    assert NativeRunner.takes(decoder)
    kernels = load_kernels()
    assert kernels is not None
    return decoder, NativeRunner(decoder, kernels, PAGES)


def draw_ids(count: int, seed: int) -> list[int]:
    return torch.randint(0, 307, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 6},
        {"tie_word_embeddings": True, "head_dim": 48, "num_attention_heads": 2, "num_key_value_heads": 2},
        {
            "rope_scaling": {"rope_type": "yarn", "factor": 2.0},
            "head_dim": 256,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        },
    ],
    ids=["grouped", "biases", "tied", "yarn-256"],
)
def test_logits_are_those_of_the_decoder(bits, changes):
    """Keys and values are bfloat16 in the pages, and these random weights amplify it; an error would be of order 1."""
    decoder, runner = build(bits, **changes)
    ids = draw_ids(100, 1)
    expected = TorchRunner(decoder, PAGES).run([Piece(ids, 0, [5, 2], 100)])
    got = runner.run([Piece(ids, 0, [3, 7], 100)])
    assert (got - expected).norm() / expected.norm() < 0.08
    assert (got.argmax(-1) == expected.argmax(-1)).float().mean() > 0.85


@pytest.mark.parametrize("bits", [8, 4])
def test_eight_sequences_together_get_what_they_get_alone(bits):
    _, runner = build(bits)
    prompts = [draw_ids(length, length) for length in (1, 3, 9, 20, 40, 64, 65, 90)]
    alone = [runner.run([Piece(ids, 0, [0, 1], len(ids))]) for ids in prompts]
    tables = [[2 * index + 2, 2 * index + 3] for index in range(8)]
    together = runner.run([Piece(ids, 0, table, len(ids)) for ids, table in zip(prompts, tables, strict=True)])
    assert torch.equal(together, torch.cat(alone))
    # One token more each: eight rows, next to one row.
    more = [draw_ids(1, 100 + index) for index in range(8)]
    rows = [Piece(i, len(p), t, 1) for i, p, t in zip(more, prompts, tables, strict=True)]
    assert torch.equal(runner.run(rows), torch.cat([runner.run([row]) for row in rows]))


def test_pieces_of_any_size_give_the_same_bits():
    """What a draft of five verifies is what five single steps compute."""
    _, runner = build(8)
    ids = draw_ids(120, 3)
    whole = runner.run([Piece(ids, 0, [0, 1], 120)])
    for sizes in ([1] * 120, [5] * 24, [64, 56], [7, 1, 100, 12]):
        parts, past = [], 0
        for size in sizes:
            parts.append(runner.run([Piece(ids[past : past + size], past, [4, 9], size)]))
            past += size
        assert torch.equal(torch.cat(parts), whole)


def test_copied_pages_and_rows_without_logits():
    _, runner = build(8)
    ids = draw_ids(70, 4)
    expected = runner.run([Piece(ids, 0, [0, 1], 1)])
    assert runner.run([Piece(ids[:69], 0, [2, 3], 0)]).shape == (0, 307)
    runner.copy_page(2, 8)
    runner.copy_page(3, 6)
    assert torch.equal(runner.run([Piece(ids[69:], 69, [8, 6], 1)]), expected)


def test_what_a_page_held_before_is_not_seen():
    """Its last owner's values were not finite, and their places are not written again."""
    decoder, runner = build(8)
    ids = draw_ids(70, 5)
    expected = [runner.run([Piece(ids[:count], 0, [0, 1], count)]) for count in (3, 20, 40, 70)]
    decoder.model.embed_tokens.weight.data[306] = torch.nan
    assert runner.run([Piece([306] * 128, 0, [0, 1], 128)]).isnan().all()
    for part in expected:
        runner.run([Piece([306] * 128, 0, [0, 1], 128)])
        assert torch.equal(runner.run([Piece(ids[: len(part)], 0, [0, 1], len(part))]), part)


def test_what_the_kernels_cannot_run_is_left_to_torch():
    decoder = build_tiny_decoder(build_tiny_config())  # heads of 12
    apply_quantization(decoder, 8)
    apply_integer_arithmetic(decoder)
    assert not NativeRunner.takes(decoder)
    assert not NativeRunner.takes(build_tiny_decoder(build_tiny_config(head_dim=16)))  # floats


FORCED = """
import sys, torch, warnings
warnings.simplefilter("error" if sys.argv[1] != "torch" else "ignore")
from tests.inference.test_native import *
config = build_tiny_config(**SHAPE)
for bits in (8, 4):
    decoder = build_tiny_decoder(config)
    apply_quantization(decoder, bits)
    apply_integer_arithmetic(decoder)
    kernels = load_kernels()
    runner = TorchRunner(decoder, PAGES) if kernels is None else NativeRunner(decoder, kernels, PAGES)
    print(runner.run([Piece(draw_ids(70, 1), 0, [0, 1], 70)]).argmax(-1).tolist())
"""


def test_every_kernel_answers_alike():
    def ask(name: str) -> list[list[int]]:
        environment = {**os.environ, "CHUAN_KERNELS": name}
        done = subprocess.run([sys.executable, "-c", FORCED, name], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return [eval(line) for line in done.stdout.splitlines()]

    expected = ask("")
    for name in (*KERNELS[:-1], "torch"):
        for got, reference in zip(ask(name), expected, strict=True):
            assert sum(a == b for a, b in zip(got, reference, strict=True)) >= 0.9 * len(reference)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_saved_model_answers_the_same_and_transformers_opens_it(tmp_path, bits):
    """The head is written in 16 bits and rounds to the same integers again."""
    config = build_tiny_config(**(SHAPE | {"hidden_size": 96}))
    decoder = build_tiny_decoder(config)
    decoder.bfloat16()
    apply_quantization(decoder, bits)
    apply_integer_arithmetic(decoder)
    save_folder(tmp_path / "saved", DecoderSource(decoder), None, Extras())
    again = load_decoder(open_folder(tmp_path / "saved"), torch.bfloat16, torch.device("cpu"), integer=True)
    kernels, ids = load_kernels(), draw_ids(40, 9)
    assert kernels is not None
    first, second = (NativeRunner(model, kernels, PAGES).run([Piece(ids, 0, [0], 40)]) for model in (decoder, again))
    assert (first - second).norm() / first.norm() < 5e-3  # the scales of the head are rounded once more
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    # One scale a token there, one a group here.
    logits = theirs(torch.tensor([ids])).logits[0]
    assert (logits - first).norm() / first.norm() < 0.15


def test_layers_that_wait_to_be_packed_answer_the_same(tmp_path):
    decoder, _ = build(8, num_hidden_layers=5)
    save_folder(tmp_path / "saved", DecoderSource(decoder.bfloat16()), None, Extras())
    kernels, ids = load_kernels(), draw_ids(60, 9)
    assert kernels is not None

    def open_again() -> NativeRunner:
        again = load_decoder(open_folder(tmp_path / "saved"), torch.bfloat16, torch.device("cpu"), integer=True)
        return NativeRunner(again, kernels, PAGES)

    def count_waiting(runner: NativeRunner) -> int:
        return sum(linear.rows is not None for linear in list_integer(runner._decoder))

    def run(runner: NativeRunner) -> list[tuple[torch.Tensor, int]]:
        """A prompt and six tokens, each with how many linears wait behind it."""
        steps = [Piece(ids[:50], 0, [0], 50), *(Piece([token], 50 + n, [0], 1) for n, token in enumerate(ids[50:56]))]
        return [(runner.run([piece]), count_waiting(runner)) for piece in steps]

    packed, waiting, changed = (open_again() for _ in range(3))
    assert count_waiting(packed) == 5 * 7
    packed.finish_loading()
    expected = run(packed)
    assert {count for _, count in expected} == {0}
    found = run(waiting)
    assert [count for _, count in found] == [35, 28, 21, 14, 7, 0, 0]
    # Packed by others, whose memory the kernels do not know of.
    reference = changed._decoder(torch.tensor([ids[:50]]))
    assert count_waiting(changed) == 0
    for (logits, _), (same, _), (wanted, _) in zip(found, run(changed), expected, strict=True):
        assert torch.equal(logits, wanted)
        assert torch.equal(same, wanted)
    assert (reference[0].float() - expected[0][0]).norm() / expected[0][0].norm() < 0.15  # bfloat16 between linears


def test_what_waits_is_written_as_it_is(tmp_path):
    decoder, _ = build(8)
    save_folder(tmp_path / "one", DecoderSource(decoder.bfloat16()), None, Extras())
    again = load_decoder(open_folder(tmp_path / "one"), torch.bfloat16, torch.device("cpu"), integer=True)
    assert any(linear.rows is not None for linear in list_integer(again))
    save_folder(tmp_path / "two", DecoderSource(again), None, Extras())
    for path in (tmp_path / "one").glob("*.safetensors"):
        first, second = load_file(path), load_file(tmp_path / "two" / path.name)
        assert first.keys() == second.keys()
        # The head's scales are rounded once more.
        assert all(torch.equal(tensor, second[name]) for name, tensor in first.items() if name != "lm_head.weight")


def list_integer(decoder: Decoder) -> list[IntegerLinear]:
    return [layer for layer in decoder.modules() if isinstance(layer, IntegerLinear)]
