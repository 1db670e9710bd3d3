"""The norm of all gradients, their clipping, and Muon, against torch's own."""

import pytest
import torch
from torch import nn

from chuan.training.optimizer import OptimizerSettings, build_optimizers, clip_gradients, orthogonalize
from chuan.training.parallel import ParallelSettings, join_ranks


@pytest.mark.parametrize("limit", [0.5, 1e4])
def test_clipping_is_torchs(limit):
    torch.manual_seed(0)
    shapes = ((300, 70), (70,), (1, 5), (64, 64))
    ours, theirs = ([nn.Parameter(torch.zeros(shape)) for shape in shapes] for _ in range(2))
    for mine, other in zip(ours, theirs, strict=True):
        mine.grad = torch.randn_like(mine) * 10 ** torch.randn(())
        other.grad = mine.grad.clone()
    ours.append(nn.Parameter(torch.zeros(3)))  # one that nothing was learned about
    with join_ranks(ParallelSettings(), "cpu"):
        norm = clip_gradients(ours, limit)
    expected = nn.utils.clip_grad_norm_(theirs, limit)
    assert norm == pytest.approx(float(expected), rel=1e-6)
    for mine, other in zip(ours, theirs, strict=False):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=0)


def test_a_large_gradient_is_summed_exactly():
    large = nn.Parameter(torch.zeros(1 << 25))
    large.grad = torch.ones_like(large)
    with join_ranks(ParallelSettings(), "cpu"):
        assert clip_gradients([large], 1e9) == pytest.approx(2**12.5, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_muon_is_torchs_but_for_the_type(dtype):
    torch.manual_seed(0)
    shapes = ((48, 32), (32, 48), (32, 32))
    start = [torch.randn(shape) for shape in shapes]
    ours, theirs = ([nn.Parameter(weight.clone()) for weight in start] for _ in range(2))
    settings = OptimizerSettings(kind="muon", learning_rate=0.01)
    [mine] = build_optimizers([(f"model.layers.{n}.weight", p) for n, p in enumerate(ours)], settings, dtype)
    other = torch.optim.Muon(theirs, 0.01, settings.weight_decay, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for left, right in zip(ours, theirs, strict=True):
            left.grad = torch.randn_like(left)
            right.grad = left.grad.clone()
        mine.step()
        other.step()
    for left, right, before in zip(ours, theirs, start, strict=True):
        error = (left - right).norm() / (right - before).norm()
        assert error == 0 if dtype == torch.bfloat16 else error < 0.02


def test_muon_maps_singular_values_by_its_polynomial():
    torch.manual_seed(0)
    matrix = torch.randn(40, 24, dtype=torch.float64)
    coefficients = (3.4445, -4.775, 2.0315)
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    values = values / values.norm()
    a, b, c = coefficients
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    expected = u @ values.diag() @ v
    for rows, wanted in ((matrix, expected), (matrix.mT, expected.mT)):
        torch.testing.assert_close(orthogonalize(rows, torch.float64, coefficients, 5), wanted)
        close = orthogonalize(rows.float(), torch.float32, coefficients, 5)
        torch.testing.assert_close(close, wanted.float(), rtol=0, atol=1e-5)
