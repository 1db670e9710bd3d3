"""The plain runner on ragged batches, against the decoder with its own cache."""

import pytest
import torch

from chuan.inference.build import choose_page_count
from chuan.inference.pages import PAGE
from chuan.inference.runner import Piece, TorchRunner
from chuan.model.paged_cache import build_zeros
from tests.support.tiny import build_tiny_config, build_tiny_decoder

CPU = torch.device("cpu")


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 1}, {"tie_word_embeddings": True}])
def test_a_ragged_batch_is_each_alone(changes: dict):
    decoder = build_tiny_decoder(build_tiny_config(max_position_embeddings=512, **changes))
    runner = TorchRunner(decoder, 12)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(307, (length,), generator=generator).tolist() for length in (200, 1, 65, 130)]
    tables = [[3, 9, 0, 7], [5], [10, 11], [1, 2, 4]]  # one of them in one piece, the others not
    with torch.inference_mode():
        expected = [decoder(torch.tensor([row]))[0] for row in rows]
    first = runner.run([Piece(rows[0][:150], 0, tables[0], 0), Piece(rows[2][:64], 0, tables[2], 64)])
    assert (first - expected[2][:64]).abs().max() < 1e-4
    second = runner.run(
        [
            Piece(rows[1], 0, tables[1], 1),
            Piece(rows[0][150:], 150, tables[0], 50),
            Piece(rows[2][64:], 64, tables[2], 1),
            Piece(rows[3], 0, tables[3], 3),
        ]
    )
    parts = [expected[1], expected[0][150:], expected[2][64:], expected[3][-3:]]
    assert (second.dtype, second.shape) == (torch.float32, (55, 307))
    assert (second - torch.cat(parts)).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_kept_is_nothing(dtype: torch.dtype):
    runner = TorchRunner(build_tiny_decoder(build_tiny_config()).to(dtype), 2)
    logits = runner.run([Piece([1, 2, 3], 0, [1], 0)])
    assert (logits.shape, logits.dtype) == ((0, 307), torch.float32)


def test_a_copied_page_is_the_same():
    runner = TorchRunner(build_tiny_decoder(build_tiny_config()), 4)
    ids = list(range(PAGE + 9))
    runner.run([Piece(ids[:-1], 0, [2, 0], 0)])
    runner.copy_page(0, 3)
    copied, original = (runner.run([Piece(ids[-1:], PAGE + 8, [2, last], 1)]) for last in (3, 0))
    assert torch.equal(copied, original)


def test_zeros_are_zero_and_aligned():
    for shape, dtype in (((3, 5), torch.bfloat16), ((7,), torch.float32)):
        zeros = build_zeros(shape, dtype, CPU)
        assert (zeros.shape, zeros.dtype, zeros.data_ptr() % 64) == (torch.Size(shape), dtype, 0)
        assert not zeros.any()


def test_pages_for_a_context_and_eight_more_unless_memory_is_short(monkeypatch: pytest.MonkeyPatch):
    config = build_tiny_config(max_position_embeddings=4096)
    assert choose_page_count(config, torch.float32, CPU) == 64 + 8 * 32
    page = 2 * 2 * 48 * PAGE * 4
    monkeypatch.setattr("chuan.inference.build.read_free_memory", lambda device: 2 * 10 * page + 1)
    assert choose_page_count(config, torch.float32, CPU) == 10
    assert choose_page_count(config, torch.bfloat16, CPU) == 20
    monkeypatch.setattr("chuan.inference.build.read_free_memory", lambda device: 0)
    assert choose_page_count(config, torch.float32, CPU) == 1
