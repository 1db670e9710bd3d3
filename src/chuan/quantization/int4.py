"""4-bit weights in groups: one scale for every 32 inputs of an output. Rounded to nearest, without calibration.

In: a weight in floats. Out: a small linear. Letters: N outputs, K inputs, G inputs of a group.
`W = (nibble - 8) * scale`; eight nibbles lie in an int32, the first in its lowest bits, as compressed-tensors packs
them (its format `pack-quantized`, W4A16).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from chuan.errors import ChuanError
from chuan.quantization.linear import QuantizedLinear

GROUP = 32
_PER_WORD = 8


class Int4Linear(QuantizedLinear):
    """A linear layer with packed 4-bit weights (N, ceil(K / 8)) int32 and scales (N, K / G)."""

    bits = 4
    weight_packed: Tensor
    weight_scale: Tensor

    def __init__(
        self, weight_packed: Tensor, weight_scale: Tensor, in_features: int, bias: Tensor | None = None
    ) -> None:
        super().__init__(weight_packed.shape[0], in_features, bias)
        self.register_buffer("weight_packed", weight_packed)
        self.register_buffer("weight_scale", weight_scale)

    @classmethod
    def quantize(cls, weight: Tensor, bias: Tensor | None = None) -> Self:
        """The nearest 4-bit layer to a float weight (N, K); scales keep the weight's type."""
        return cls(*quantize_groups(weight), weight.shape[1], bias)

    @property
    def group_size(self) -> int:
        """G."""
        return self.in_features // self.weight_scale.shape[1]

    def dequantize(self, rows: slice = slice(None)) -> Tensor:
        nibbles = unpack_nibbles(self.weight_packed[rows], self.in_features)
        scale = self.weight_scale[rows].float()
        return (nibbles.view(*scale.shape, -1).float() * scale.unsqueeze(-1)).view(nibbles.shape)

    def take_rows(self, rows: slice) -> Self:
        return type(self)(self.weight_packed[rows], self.weight_scale[rows], self.in_features)

    @classmethod
    def join_rows(cls, parts: Sequence[Self]) -> Self:
        packed = torch.cat([part.weight_packed for part in parts])
        return cls(packed, torch.cat([part.weight_scale for part in parts]), parts[0].in_features)


def quantize_groups(weight: Tensor, group: int = GROUP) -> tuple[Tensor, Tensor]:
    """(N, K) float -> packed (N, ceil(K / 8)) int32 and scales (N, K / G) in the weight's type; symmetric, nearest."""
    if weight.shape[1] % group:
        raise ChuanError(f"4-bit groups of {group} do not divide a width of {weight.shape[1]}; use bits=8")
    grouped = weight.unflatten(1, (-1, group)).float()
    scale = (grouped.abs().amax(dim=-1) / 7.5).to(weight.dtype)
    divisor = torch.where(scale > 0, scale, torch.ones_like(scale)).float().unsqueeze(-1)
    values = (grouped / divisor).round_().clamp_(-8, 7).to(torch.int8)
    return pack_nibbles(values.flatten(1)), scale


def pack_nibbles(values: Tensor) -> Tensor:
    """(N, K) integers from -8 to 7 -> (N, ceil(K / 8)) int32."""
    padding = -values.shape[1] % _PER_WORD
    words = torch.nn.functional.pad(values.to(torch.int32) + 8, (0, padding)).unflatten(1, (-1, _PER_WORD))
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=values.device)
    return (words << shifts).sum(dim=-1, dtype=torch.int64).to(torch.int32)  # the sum passes 2**31 and wraps


def unpack_nibbles(packed: Tensor, width: int) -> Tensor:
    """(N, ceil(K / 8)) int32 -> (N, K) int8 from -8 to 7."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=packed.device)
    nibbles = (packed.unsqueeze(-1) >> shifts) & 15
    return (nibbles - 8).to(torch.int8).flatten(1)[:, :width]
