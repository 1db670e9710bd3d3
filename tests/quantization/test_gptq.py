"""Calibrated 4 bits: better than nearest where inputs are correlated, nearest where they are not, odd inputs."""

import pytest
import torch
from torch import Tensor

from chuan.errors import ChuanError
from chuan.quantization.gptq import quantize_calibrated
from chuan.quantization.int4 import Int4Linear, round_to_levels, unpack_nibbles


def draw(width: int, outputs: int = 40, tokens: int = 2000, dead: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """A weight and inputs that are correlated, some much larger than others."""
    generator = torch.Generator().manual_seed(width)
    mixed = torch.randn(tokens, width // 4, generator=generator) @ torch.randn(width // 4, width, generator=generator)
    inputs = mixed / (width / 4) ** 0.5 + 0.3 * torch.randn(tokens, width, generator=generator)
    inputs *= torch.rand(width, generator=generator) ** 3 + 0.01
    inputs[:, list(dead)] = 0
    return torch.randn(outputs, width, generator=generator), inputs


def measure_error(linear: Int4Linear, weight: Tensor, inputs: Tensor) -> float:
    meant = inputs @ weight.t().float()
    return float((inputs @ linear.dequantize().t() - meant).norm() / meant.norm())


@pytest.mark.parametrize(("width", "group"), [(32, 32), (576, 32), (576, 64), (128, 128), (160, 32)])
def test_outputs_are_closer_than_with_nearest_on_inputs_that_were_not_seen(width: int, group: int):
    weight, inputs = draw(width)
    linear = quantize_calibrated(weight, inputs[:1000].t() @ inputs[:1000], group)
    assert linear.group_size == group
    nearest = Int4Linear.quantize(weight)
    assert measure_error(linear, weight, inputs[1000:]) < 0.7 * measure_error(nearest, weight, inputs[1000:])


def test_inputs_without_correlation_are_rounded_to_nearest():
    weight, _ = draw(96)
    linear = quantize_calibrated(weight, torch.eye(96))
    assert torch.equal(unpack_nibbles(linear.weight_packed, 96), round_to_levels(weight, linear.weight_scale))
    torch.testing.assert_close(linear.weight_scale, Int4Linear.quantize(weight).weight_scale, rtol=0.01, atol=0)


def test_it_is_the_recursion_of_the_paper():
    """One weight after the other, the inverse of what is left of the Hessian taken anew each time."""
    weight, inputs = draw(32, outputs=3)
    hessian = inputs.t() @ inputs
    linear = quantize_calibrated(weight, hessian)
    left = (hessian / hessian.diagonal().mean()).double()
    order = (hessian.diagonal()).argsort(descending=True)
    left = left[order][:, order] + 0.01 * torch.eye(32)
    rows, scale = weight[:, order].double(), linear.weight_scale[:, :1].double()
    levels = torch.empty(3, 32, dtype=torch.int8)
    for index in range(32):
        inverse = torch.linalg.inv(left[index:, index:])
        levels[:, order[index]] = (rows[:, index : index + 1] / scale).round().clamp(-8, 7).to(torch.int8)[:, 0]
        error = rows[:, index] - levels[:, order[index]] * scale[:, 0]
        rows[:, index:] -= torch.outer(error, inverse[0] / inverse[0, 0])
    assert torch.equal(unpack_nibbles(linear.weight_packed, 32), levels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scales_keep_the_weights_type(dtype: torch.dtype):
    weight, inputs = draw(64)
    linear = quantize_calibrated(weight.to(dtype), inputs.t() @ inputs)
    assert linear.weight_scale.dtype == dtype
    assert torch.equal(linear.weight_scale.bfloat16().float(), linear.weight_scale.float())


def test_a_dead_input_is_rounded_to_nearest_and_hurts_no_other():
    weight, inputs = draw(64, dead=(3, 40))
    linear = quantize_calibrated(weight, inputs.t() @ inputs)
    nearest = round_to_levels(weight, linear.weight_scale.float())
    assert torch.equal(unpack_nibbles(linear.weight_packed, 64)[:, [3, 40]], nearest[:, [3, 40]])
    assert measure_error(linear, weight, inputs) < measure_error(Int4Linear.quantize(weight), weight, inputs)


def test_inputs_that_were_never_seen_at_all_and_fewer_tokens_than_inputs():
    weight, inputs = draw(96)
    silent = quantize_calibrated(weight, torch.zeros(96, 96))
    assert torch.equal(unpack_nibbles(silent.weight_packed, 96), round_to_levels(weight, silent.weight_scale))
    few = quantize_calibrated(weight, inputs[:5].t() @ inputs[:5])
    assert torch.isfinite(few.dequantize()).all()
    assert measure_error(few, weight, inputs) < 0.3
    assert torch.equal(quantize_calibrated(0 * weight, inputs.t() @ inputs).dequantize(), 0 * weight)


def test_a_width_that_groups_do_not_divide_is_refused():
    with pytest.raises(ChuanError, match="groups of 32 do not divide a width of 40; use bits=8"):
        quantize_calibrated(torch.zeros(2, 40), torch.eye(40))
