"""The kernels of every instruction set that this processor runs, against integer arithmetic."""

import ctypes
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from chuan.errors import ChuanError
from chuan.quantization.int4 import Int4Linear, pack_nibbles, unpack_nibbles
from chuan.quantization.int8 import Int8Linear
from chuan.quantization.integer import IntegerLinear, multiply_in_torch, quantize_activations
from chuan.quantization.kernels.bindings import check_structures, describe_linear, open_kernels


def list_kernels() -> list[str]:
    found = []
    for name in ("portable", "avx2", "avx512_vnni", "amx"):
        try:
            if open_kernels(name) is not None:
                found.append(name)
        except ChuanError:
            continue
    return found


KERNELS = list_kernels()
every_kernel = pytest.mark.parametrize("name", KERNELS)
FEW_ROWS = [(1, 16, 64), (1, 5, 3), (2, 48, 576), (5, 100, 576), (7, 33, 100), (13, 200, 1536)]
SHAPES = [*FEW_ROWS, (37, 72, 1100), (270, 40, 200)]
FOUR_BIT_SHAPES = [(1, 16, 1), (3, 20, 3), (6, 96, 4), (17, 50, 9), (45, 50, 9), (300, 20, 5)]


def draw(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator) * torch.randn(rows, width, generator=generator).exp()
    x[0, width // 2] *= 500  # an outlier: its group needs the second digit
    return x


def run(name: str, linear: tuple, x: torch.Tensor, packed: bool = True) -> torch.Tensor:
    kernels = open_kernels(name)
    assert kernels is not None
    weight, scale, bias, width, bits, group = linear
    panels = weight
    if packed:
        panels = kernels.pack8(weight) if bits == 8 else kernels.pack4(weight, width)
    return kernels.linear(describe_linear(panels, width, weight.shape[0], bits, group, scale, bias), x)


def eight_bits(outputs: int, width: int, low: int = -128) -> tuple:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randint(low, 128, (outputs, width), dtype=torch.int8, generator=generator)
    padded = -(-outputs // 16) * 16
    return weight, torch.rand(padded, generator=generator), torch.randn(padded, generator=generator), width, 8, 64


def four_bits(outputs: int, width: int, group: int) -> tuple:
    generator = torch.Generator().manual_seed(2)
    packed = pack_nibbles(torch.randint(-8, 8, (outputs, width), generator=generator))
    scale = torch.rand(-(-outputs // 16), width // group, 16, generator=generator).bfloat16()
    return packed, scale, None, width, 4, group


def test_this_machine_has_compiled_kernels():
    assert "portable" in KERNELS, "the C compiler failed: see the output of pip install"


def test_kernels_of_another_version_are_refused():
    with pytest.raises(ChuanError, match="install the package again"):
        check_structures(ctypes.CDLL(None))


@every_kernel
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_eight_bits_equal_torch_bit_for_bit(name, shape, packed):
    rows, outputs, width = shape
    linear, x = eight_bits(outputs, width), draw(rows, width)
    expected = multiply_in_torch(x, linear[0], None, linear[1][:outputs], linear[2], 64)
    assert torch.equal(run(name, linear, x, packed), expected)


@every_kernel
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize(("rows", "outputs", "groups"), FOUR_BIT_SHAPES)
def test_four_bits_equal_torch_bit_for_bit(name, group, rows, outputs, groups):
    width = group * groups
    linear, x = four_bits(outputs, width, group), draw(rows, width)
    scale = linear[1].transpose(1, 2).flatten(0, 1)[:outputs].float()
    expected = multiply_in_torch(x, unpack_nibbles(linear[0], width), scale, None, None, group)
    assert torch.equal(run(name, linear, x), expected)


@every_kernel
@pytest.mark.parametrize("rows", [1, 5, 11, 50])
def test_extreme_values_are_integer_arithmetic(name, rows):
    """Every product at its largest: what saturates somewhere shows here. All scales are 1."""
    width, outputs = 1024, 32
    signs = torch.where(torch.arange(width) % 3 == 0, -1.0, 1.0)
    x = (127 * signs).expand(rows, width).contiguous()
    for value, packed in itertools.product((-128, 127), (True, False)):
        weight = torch.full((outputs, width), value, dtype=torch.int8)
        weight[1::2] = (127 * signs).to(torch.int8)
        got = run(name, (weight, torch.ones(outputs), None, width, 8, 64), x, packed).numpy().astype(np.int64)
        expected = x.numpy().astype(np.int64) @ weight.numpy().astype(np.int64).T
        assert (got == expected).all()
    for value in (-8, 7):
        nibbles = torch.full((outputs, width), value)
        scale = torch.ones(outputs // 16, width // 32, 16, dtype=torch.bfloat16)
        got = run(name, (pack_nibbles(nibbles), scale, None, width, 4, 32), x).numpy().astype(np.int64)
        assert (got == x.numpy().astype(np.int64) @ nibbles.numpy().T).all()


@every_kernel
@pytest.mark.parametrize("bits", [8, 4])
def test_a_row_does_not_depend_on_its_company(name, bits):
    linear = eight_bits(72, 320) if bits == 8 else four_bits(72, 320, 32)
    x = draw(75, 320)
    together = run(name, linear, x)
    for row in range(75):
        assert torch.equal(run(name, linear, x[row : row + 1]), together[row : row + 1])
    for first, last in ((5, 14), (20, 43), (3, 55)):
        assert torch.equal(run(name, linear, x[first:last]), together[first:last])


@every_kernel
def test_what_is_not_finite_spoils_its_row_only(name):
    linear, x = eight_bits(40, 130), draw(6, 130)
    expected = run(name, linear, x)
    x[1, 7], x[3, 129] = float("nan"), float("inf")
    got = run(name, linear, x)
    assert got[[1, 3]].isnan().all()
    assert torch.equal(got[[0, 2, 4, 5]], expected[[0, 2, 4, 5]])
    x[2] = 0
    assert torch.equal(run(name, linear, x)[2], linear[2][:40])


@every_kernel
def test_packing_is_undone(name):
    kernels = open_kernels(name)
    assert kernels is not None
    weight = eight_bits(50, 100)[0]
    assert torch.equal(kernels.unpack8(kernels.pack8(weight), 7, 30, 100), weight[7:37])
    nibbles = four_bits(50, 96, 32)[0]
    assert torch.equal(kernels.unpack4(kernels.pack4(nibbles, 96), 7, 30, 96), nibbles[7:37])


def test_the_layer_is_its_weight_times_rounded_activations():
    weight, x = torch.randn(70, 192), draw(9, 192)
    for layer in (Int8Linear.quantize(weight), Int4Linear.quantize(weight.bfloat16())):
        layer.bias = torch.nn.Parameter(torch.randn(70), requires_grad=False)
        exact = x @ layer.dequantize().T + layer.bias
        packed = IntegerLinear(layer)
        assert torch.equal(packed.dequantize(slice(3, 50)), layer.dequantize(slice(3, 50)))
        restored = packed.unpack()
        assert type(restored) is type(layer)
        assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(restored.buffers(), layer.buffers(), strict=True))
        error = (packed(x.view(3, 3, 192)).view(9, 70) - exact).norm() / exact.norm()
        assert 0 < error < 0.006


def test_outliers_are_kept_apart():
    """A channel 100 times the rest: in its own group the others keep their digits."""
    x = torch.randn(50, 576, generator=torch.Generator().manual_seed(0))
    x[:, [3, 70, 200, 500]] *= 1000
    weight = torch.randn(64, 576)
    weight[:, [3, 70, 200, 500]] /= 1000  # so that the rest is what counts
    first, second, scale = quantize_activations(x, 64)
    plain = (first * scale.unsqueeze(-1)).flatten(1)
    kept = ((first + second / 254) * scale.unsqueeze(-1)).flatten(1)
    exact = x @ weight.T
    assert (plain @ weight.T - exact).norm() / exact.norm() > 0.2
    assert (kept @ weight.T - exact).norm() / exact.norm() < 0.01


def test_scales_that_the_kernels_cannot_hold_are_left_alone():
    layer = Int4Linear.quantize(torch.randn(8, 64))
    layer.weight_scale = layer.weight_scale.float() * 1.0001
    assert not IntegerLinear.takes(layer)
    assert IntegerLinear.takes(Int4Linear.quantize(torch.randn(8, 576)))


def test_kernels_by_name():
    code = "from chuan.quantization.kernels.bindings import load_kernels; k = load_kernels(); print(k and k.name)"

    def ask(value: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "CHUAN_KERNELS": value}
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
        )

    assert ask("portable").stdout.strip() == "portable"
    assert ask("torch").stdout.strip() == "None"
    assert ask("").stdout.strip() == KERNELS[-1]
    assert "unset it" in ask("avx1024").stderr
