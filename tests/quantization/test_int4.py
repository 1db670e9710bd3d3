"""4-bit groups: the definition, the packing (compressed-tensors' own, as oracle), the linear."""

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.base import pack_to_int32, unpack_from_int32

from chuan.errors import ChuanError
from chuan.quantization.int4 import Int4Linear, pack_nibbles, quantize_groups, unpack_nibbles


@pytest.mark.parametrize("width", [8, 32, 36, 576])
def test_packing_is_that_of_compressed_tensors(width: int):
    values = torch.randint(-8, 8, (7, width), generator=torch.Generator().manual_seed(width)).to(torch.int8)
    packed = pack_nibbles(values)
    assert torch.equal(packed, pack_to_int32(values, num_bits=4))
    assert torch.equal(unpack_nibbles(packed, width), values)
    assert torch.equal(unpack_from_int32(packed, 4, torch.Size(values.shape)), values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_weight_is_within_half_a_step(dtype: torch.dtype):
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    linear = Int4Linear.quantize(weight)
    assert linear.weight_scale.dtype == dtype
    assert (linear.group_size, linear.weight_packed.shape) == (32, (64, 12))
    steps = linear.weight_scale.float().repeat_interleave(32, dim=1)
    # The scale, rounded to its type, may leave the largest weight a little beyond the last level.
    assert float(((linear.dequantize() - weight.float()).abs() / steps).max()) <= 0.5 + 8 * 2**-8


def test_extremes():
    weight = torch.zeros(2, 32)
    weight[0, 0], weight[1] = 1e-30, -3.0
    linear = Int4Linear.quantize(weight)
    assert torch.isfinite(linear.dequantize()).all()
    torch.testing.assert_close(linear.dequantize()[1], weight[1], rtol=0.07, atol=0)
    assert torch.equal(Int4Linear.quantize(torch.zeros(4, 32)).dequantize(), torch.zeros(4, 32))


def test_the_linear_multiplies_by_what_it_says_in_blocks_of_rows():
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(1500, 64, generator=generator), torch.randn(1500, generator=generator)
    linear = Int4Linear.quantize(weight, bias)
    x = torch.randn(2, 3, 64, generator=generator)
    torch.testing.assert_close(linear(x), torch.nn.functional.linear(x, linear.dequantize(), bias))
    rows = slice(700, 1300)
    assert torch.equal(linear.take_rows(rows).dequantize(), linear.dequantize(rows))
    parts = [linear.take_rows(slice(0, 700)), linear.take_rows(slice(700, 1500))]
    assert torch.equal(Int4Linear.join_rows(parts).dequantize(), linear.dequantize())


def test_a_width_that_groups_do_not_divide_is_refused():
    with pytest.raises(ChuanError, match="groups of 32 do not divide a width of 40; use bits=8"):
        quantize_groups(torch.zeros(2, 40))
