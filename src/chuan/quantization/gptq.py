"""4 bits with calibration: rounding errors of one input are made good by the weights of those that come after it.

In: a float weight and what its inputs looked like. Out: a small linear. Knows no model and no text.
GPTQ (Frantar et al. 2022, https://arxiv.org/abs/2210.17323), inputs in order of importance, with the scales of the
groups chosen beforehand, so that the order leaves no trace in the file. Letters: N outputs, K inputs, G of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chuan.quantization.int4 import GROUP, Int4Linear, check_group, choose_scales, pack_nibbles

_BLOCK = 128  # inputs that are rounded before the rest of the matrix hears of it
_DAMPING = 0.01  # of the mean square of the inputs: the paper's


def quantize_calibrated(weight: Tensor, hessian: Tensor, group: int = GROUP) -> Int4Linear:
    """The 4-bit layer, without bias, whose outputs lie close to those of a float weight (N, K).

    `hessian` (K, K) float32 is the sum of x xᵀ over inputs x; scales keep the weight's type. An input that was always
    zero is rounded to nearest. Raises ChuanError where groups do not divide K.
    """
    check_group(weight.shape[1], group)
    spread = hessian.diagonal().mean().clamp(min=1e-30)
    hessian = hessian / spread  # a copy, of a size at which 1 is large and 1e-6 is not lost
    importance = hessian.diagonal() + _DAMPING
    scale = torch.cat([choose_scales(rows.float(), group, importance) for rows in weight.split(64)]).to(weight.dtype)
    order = importance.argsort(descending=True)
    hessian = hessian[order][:, order]
    hessian.diagonal().add_(_DAMPING)
    levels = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    levels[:, order] = _round_in_order(weight.t()[order].float(), scale.float().t()[order // group], hessian).t()
    return Int4Linear(pack_nibbles(levels), scale, weight.shape[1])


def _round_in_order(weight: Tensor, scale: Tensor, hessian: Tensor) -> Tensor:
    """Weight and scales (K, N), in the order of rounding -> levels (K, N) int8; the weight is used up."""
    factor = _factor_inverse(hessian)
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale)
    levels = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    for start in range(0, weight.shape[0], _BLOCK):
        block = weight[start : start + _BLOCK]
        end = start + block.shape[0]
        errors = torch.empty_like(block)
        for index in range(block.shape[0]):
            row = start + index
            rounded = (block[index] / divisor[row]).round_().clamp_(-8, 7)
            levels[row] = rounded.to(torch.int8)
            errors[index] = (block[index] - rounded * scale[row]) / factor[row, row]
            block[index + 1 :].addr_(factor[row, row + 1 : end], errors[index], alpha=-1)
        weight[end:].addmm_(factor[start:end, end:].t(), errors, alpha=-1)
    return levels


def _factor_inverse(hessian: Tensor) -> Tensor:
    """The upper triangular U with Uᵀ U = H⁻¹: one factorization of H from its far corner, one inverse."""
    lower = torch.linalg.cholesky(hessian.flip(0, 1))
    upper = lower.flip(0, 1)  # H = upper upperᵀ
    return torch.linalg.solve_triangular(upper, torch.eye(len(upper), device=upper.device), upper=True)
