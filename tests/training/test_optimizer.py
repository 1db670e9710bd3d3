"""The norm of all gradients and their clipping, against torch's own."""

import pytest
import torch
from torch import nn

from chuan.training.optimizer import clip_gradients
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
