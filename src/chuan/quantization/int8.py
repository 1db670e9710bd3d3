"""8-bit weights: one scale an output channel, activations as they come. Simple and exact to its definition.

In: a weight in floats. Out: a small linear. Letters: N outputs, K inputs.
The weight is rounded to the nearest of 255 levels, `W = int8 * scale`; the product is computed in the activations' type
(int8 values are exact in bfloat16) and scaled behind the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from chuan.quantization.linear import QuantizedLinear

_BLOCK = 1 << 20  # numbers at a time: what the caches hold


class Int8Linear(QuantizedLinear):
    """A linear layer with int8 weights (N, K) and a float32 scale for each output (N, 1)."""

    bits = 8
    weight: Tensor
    weight_scale: Tensor

    def __init__(self, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(weight.shape[0], weight.shape[1], bias)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)

    @classmethod
    def quantize(cls, weight: Tensor, bias: Tensor | None = None) -> Self:
        """The nearest int8 layer to a float weight (N, K)."""
        return cls(*quantize_rows(weight), bias)

    def dequantize(self, rows: slice = slice(None)) -> Tensor:
        return dequantize_rows(self.weight[rows], self.weight_scale[rows])

    def take_rows(self, rows: slice) -> Self:
        return type(self)(self.weight[rows], self.weight_scale[rows])

    @classmethod
    def join_rows(cls, parts: Sequence[Self]) -> Self:
        return cls(torch.cat([part.weight for part in parts]), torch.cat([part.weight_scale for part in parts]))

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight.to(x.dtype)) * self.weight_scale.view(-1).to(x.dtype)
        return y if self.bias is None else y + self.bias


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) float -> int8 (N, K) and scales (N, 1) float32 with `weight ~ int8 * scale`; symmetric, nearest."""
    values = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = torch.empty(weight.shape[0], 1, device=weight.device)
    step = max(1, _BLOCK // max(1, weight.shape[1]))
    for start in range(0, weight.shape[0], step):
        rows = slice(start, start + step)
        block = weight[rows].float()
        largest = block.abs().amax(dim=1, keepdim=True)
        scale[rows] = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
        values[rows] = (block / scale[rows]).round_().clamp_(-127, 127)
    return values, scale


def dequantize_rows(weight: Tensor, scale: Tensor) -> Tensor:
    """The float32 weight that an int8 one stands for."""
    return weight.float() * scale.float().view(-1, 1)
