"""8-bit weights: one scale an output channel, activations as they come. Simple and exact to its definition.

In: a finished decoder, or one weight. Out: the same decoder with small linears. Letters: N outputs, K inputs.
The weight is rounded to the nearest of 255 levels, `W = int8 * scale`; the product is computed in the activations' type
(int8 values are exact in bfloat16) and scaled behind the sum.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Int8Linear(nn.Module):
    """A linear layer with int8 weights (N, K) and a float32 scale for each output (N, 1)."""

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight.to(x.dtype)) * self.weight_scale.view(-1).to(x.dtype)
        return y if self.bias is None else y + self.bias


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) float -> int8 (N, K) and scales (N, 1) float32 with `weight ~ int8 * scale`; symmetric, nearest."""
    largest = weight.abs().amax(dim=1, keepdim=True).float()
    scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
    return (weight / scale).round_().clamp_(-127, 127).to(torch.int8), scale


def dequantize_rows(weight: Tensor, scale: Tensor) -> Tensor:
    """The float32 weight that an int8 one stands for."""
    return weight.float() * scale.float().view(-1, 1)


def apply_int8(model: nn.Module) -> None:
    """Replaces, in place, every linear of the decoder's layers; embeddings, norms and head keep their precision.

    On a meta model this only shapes the buffers, for a checkpoint to fill.
    """
    for name, layer in list(model.named_modules()):
        if ".layers." not in f".{name}." or not isinstance(layer, nn.Linear):
            continue
        weight, scale = quantize_rows(layer.weight.detach())
        parent, _, attribute = name.rpartition(".")
        bias = None if layer.bias is None else layer.bias.detach()
        setattr(model.get_submodule(parent), attribute, Int8Linear(weight, scale, bias))
