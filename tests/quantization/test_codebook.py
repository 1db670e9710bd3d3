"""NF4 and FP4 against bitsandbytes itself, on the CPU: the order of nibbles, blocks that end inside a row, slices."""

import bitsandbytes.functional as bnb
import pytest
import torch

from chuan.errors import ChuanError
from chuan.quantization.codebook import NF4, CodebookLinear


def build(shape: tuple[int, int], kind: str = "nf4", block: int = 64) -> tuple[CodebookLinear, torch.Tensor]:
    """A layer of ours, and what bitsandbytes says that the same bytes mean.

    Its CPU kernel (0.50) is right only where rows are whole blocks, so it is asked for rows of one block each.
    """
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(shape[0]))
    packed, state = bnb.quantize_4bit(weight, blocksize=block, quant_type=kind)
    linear = CodebookLinear(packed.flatten(), state.absmax, state.code, shape, block, kind)
    state.shape = torch.Size((weight.numel() // block, block))
    return linear, bnb.dequantize_4bit(packed, state).view(shape)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize(("shape", "block"), [((96, 64), 64), ((64, 96), 64), ((32, 50), 64), ((512, 128), 256)])
def test_dequantized_as_bitsandbytes_does(kind: str, shape: tuple[int, int], block: int):
    linear, expected = build(shape, kind, block)
    assert torch.equal(linear.dequantize(), expected)
    for rows in (slice(1, 3), slice(2, 3), slice(1, shape[0])):
        assert torch.equal(linear.dequantize(rows), expected[rows])


def test_the_table_is_bitsandbytes_own():
    assert torch.equal(torch.tensor(NF4), bnb.get_4bit_type("nf4", device="cpu").float())


def test_the_first_of_two_neighbours_is_the_high_nibble():
    codes = torch.tensor([0xF0], dtype=torch.uint8)
    linear = CodebookLinear(codes, torch.ones(1), torch.tensor(NF4), (1, 2), 64, "nf4")
    assert linear.dequantize().tolist() == [[1.0, -1.0]]


def test_the_linear_multiplies_by_what_it_says_in_blocks_of_rows():
    linear, expected = build((1600, 50))
    x = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(linear(x), torch.nn.functional.linear(x, expected))


def test_rows_come_apart_and_together():
    linear, expected = build((96, 32))
    parts = [linear.take_rows(slice(start, start + 32)) for start in (0, 32, 64)]
    assert all(torch.equal(part.dequantize(), rows) for part, rows in zip(parts, expected.chunk(3), strict=True))
    joined = CodebookLinear.join_rows(parts)
    assert torch.equal(joined.weight, linear.weight)
    assert torch.equal(joined.absmax, linear.absmax)


def test_blocks_that_run_across_are_refused():
    linear, _ = build((32, 50))
    with pytest.raises(ChuanError, match="cannot be taken apart; load it with bits=16"):
        linear.take_rows(slice(3, 6))
    part = CodebookLinear(linear.weight[:400], linear.absmax[:13], linear.code, (16, 50), 64, "nf4")
    with pytest.raises(ChuanError, match="cannot be joined"):
        CodebookLinear.join_rows([part, part])
