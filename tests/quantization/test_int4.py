"""4-bit groups: the definition, the packing (compressed-tensors' own, as oracle), the linear."""

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.base import pack_to_int32, unpack_from_int32

from chuan.errors import ChuanError
from chuan.quantization.int4 import (
    Int4Linear,
    choose_scales,
    pack_nibbles,
    quantize_groups,
    round_to_levels,
    unpack_nibbles,
)


@pytest.mark.parametrize("width", [8, 32, 36, 576])
def test_packing_is_that_of_compressed_tensors(width: int):
    values = torch.randint(-8, 8, (7, width), generator=torch.Generator().manual_seed(width)).to(torch.int8)
    packed = pack_nibbles(values)
    assert torch.equal(packed, pack_to_int32(values, num_bits=4))
    assert torch.equal(unpack_nibbles(packed, width), values)
    assert torch.equal(unpack_from_int32(packed, 4, torch.Size(values.shape)), values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scales_keep_the_weights_type_and_are_bfloat16_numbers(dtype: torch.dtype):
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[0] *= 1e-6  # float16 has no normal numbers there
    linear = Int4Linear.quantize(weight)
    assert linear.weight_scale.dtype == dtype
    assert (linear.group_size, linear.weight_packed.shape) == (32, (64, 12))
    assert torch.equal(linear.weight_scale.bfloat16().float(), linear.weight_scale.float())


@pytest.mark.parametrize("group", [32, 64, 128])
def test_every_weight_has_the_level_next_to_it(group: int):
    weight = torch.randn(9, 2 * group, generator=torch.Generator().manual_seed(1))
    packed, scale = quantize_groups(weight, group)
    linear = Int4Linear(packed, scale, weight.shape[1])
    assert linear.group_size == group
    levels = torch.arange(-8, 8) * scale.repeat_interleave(group, dim=1).unsqueeze(-1)
    nearest = (weight.unsqueeze(-1) - levels).abs().amin(dim=-1)
    torch.testing.assert_close((linear.dequantize() - weight).abs(), nearest, rtol=0, atol=1e-6)


def test_no_row_is_further_off_than_with_scales_from_the_largest_weight():
    weight = torch.randn(256, 320, generator=torch.Generator().manual_seed(2))
    weight[::2] = weight[::2] ** 3  # heavy tails
    grouped = weight.unflatten(1, (-1, 32))
    extreme = grouped.gather(2, grouped.abs().argmax(dim=2, keepdim=True))
    like_q4_0 = torch.round(grouped / (extreme / -8)).clamp(-8, 7) * (extreme / -8) - grouped
    error = (Int4Linear.quantize(weight).dequantize().view_as(grouped) - grouped).square().sum(dim=(1, 2))
    assert bool((error < like_q4_0.square().sum(dim=(1, 2))).all())
    assert float(error[1::2].sum()) < 0.93 * float(like_q4_0.square().sum(dim=(1, 2))[1::2].sum())


def test_scales_serve_the_inputs_that_matter():
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(3))
    importance = torch.where(torch.arange(32) < 8, 1.0, 0.001)
    errors = []
    for given in (None, importance):
        scale = choose_scales(weight, 32, given)
        rounded = round_to_levels(weight, scale) * scale
        errors.append(float(((rounded - weight).square() * importance).sum()))
    assert errors[1] < 0.9 * errors[0]


def test_the_side_of_the_largest_weight_has_eight_levels():
    weight = torch.stack([torch.arange(-24.0, 8.0), -torch.arange(-24.0, 8.0)])
    packed, scale = quantize_groups(weight)
    assert float(scale[0]) > 0 > float(scale[1])
    assert torch.equal(unpack_nibbles(packed, 32)[0], unpack_nibbles(packed, 32)[1])
    assert int(unpack_nibbles(packed, 32).min()) == -8


def test_extremes():
    weight = torch.zeros(2, 32)
    weight[0, 0], weight[1] = 1e-30, -3.0
    linear = Int4Linear.quantize(weight)
    torch.testing.assert_close(linear.dequantize(), weight, rtol=0.004, atol=0)  # the scale is a bfloat16 number
    assert torch.isfinite(Int4Linear.quantize(weight.half()).dequantize()).all()
    huge = torch.full((1, 32), 3e38)
    torch.testing.assert_close(Int4Linear.quantize(huge).dequantize(), huge, rtol=0.004, atol=0)
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
