"""4-bit weights in groups: one scale for every 32 inputs of an output. Without calibration; `gptq` is the other way.

In: a weight in floats. Out: a small linear. Letters: N outputs, K inputs, G inputs of a group.
`W = (nibble - 8) * scale`; eight nibbles lie in an int32, the first in its lowest bits, as compressed-tensors packs
them (its format `pack-quantized`, W4A16). A scale may be negative: there are eight levels below zero and seven above,
and the side that has the largest weight of its group gets the eight.
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
# At which level the largest weight of a group is tried. Beyond 8 it is cut, which is often worth it for the others.
# These three come within 0.3 % of the error of sixty on normal weights; -8 alone, as in llama.cpp's Q4_0, has 6 % more.
_LEVELS = (8.5, 8.0, 7.25)
_BLOCK = 1 << 19  # weights that are in work at a time


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
        """A 4-bit layer close to a float weight (N, K); scales keep the weight's type."""
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
    """(N, K) float -> packed (N, ceil(K / 8)) int32 and scales (N, K / G) in the weight's type."""
    check_group(weight.shape[1], group)
    packed, scales = [], []
    for rows in weight.split(max(1, _BLOCK // weight.shape[1])):
        scale = choose_scales(rows.float(), group).to(weight.dtype)
        packed.append(pack_nibbles(round_to_levels(rows.float(), scale.float())))
        scales.append(scale)
    return torch.cat(packed), torch.cat(scales)


def check_group(width: int, group: int) -> None:
    """Raises ChuanError where groups do not divide a width."""
    if width % group:
        raise ChuanError(f"4-bit groups of {group} do not divide a width of {width}; use bits=8")


def choose_scales(weight: Tensor, group: int, importance: Tensor | None = None) -> Tensor:
    """(N, K) float32 -> (N, K / G) float32, the scales of least squared error among some.

    `importance` (K,) weighs the inputs. For each of a few first scales the weights are rounded, and the best scale for
    those roundings follows in closed form: <w, q> / <q, q>. A scale is a bfloat16 number, whatever type it is kept in,
    because the kernels hold it in 16 bits: rounding it there, after the levels were chosen, would cost accuracy and
    would make the kernel disagree with the file.
    """
    grouped = weight.unflatten(1, (-1, group))
    extreme = -grouped.gather(2, grouped.abs().argmax(dim=2, keepdim=True))
    shape = grouped / torch.where(extreme == 0, torch.ones_like(extreme), extreme)  # the largest is -1
    weighed = shape if importance is None else shape * importance.view(1, -1, group)
    best = scale = torch.zeros_like(extreme[..., 0])
    for level in _LEVELS:
        rounded = (shape * level).round_().clamp_(-8, 7)
        fit = (rounded * weighed).sum(dim=2)
        if importance is not None:
            norm = (rounded.square() * importance.view(1, -1, group)).sum(dim=2).clamp_min_(1e-30)
        else:
            norm = rounded.square_().sum(dim=2).clamp_min_(1e-30)
        gain = fit.square() / norm  # the squared error is that of nothing but zeros, less this
        better = gain > best
        best, scale = torch.where(better, gain, best), torch.where(better, fit / norm, scale)
    return (scale * extreme[..., 0]).bfloat16().float()


def round_to_levels(weight: Tensor, scale: Tensor) -> Tensor:
    """(N, K) float32 and its scales (N, K / G) -> (N, K) int8, the nearest levels from -8 to 7."""
    grouped = weight.view(*scale.shape, -1)
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale).unsqueeze(-1)
    return (grouped / divisor).round_().clamp_(-8, 7).to(torch.int8).flatten(1)


def pack_nibbles(values: Tensor) -> Tensor:
    """(N, K) integers from -8 to 7 -> (N, ceil(K / 8)) int32."""
    padding = -values.shape[1] % _PER_WORD
    nibbles = (
        torch.nn.functional.pad(values.to(torch.int8) + 8, (0, padding)).view(torch.uint8).unflatten(1, (-1, 4, 2))
    )
    # Bytes first, then four of them as a word (little-endian): twenty times faster than shifting words.
    return (nibbles[..., 0] | nibbles[..., 1] << 4).contiguous().view(torch.int32).squeeze(-1)


def unpack_nibbles(packed: Tensor, width: int) -> Tensor:
    """(N, ceil(K / 8)) int32 -> (N, K) int8 from -8 to 7."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=packed.device)
    nibbles = (packed.unsqueeze(-1) >> shifts) & 15
    return (nibbles - 8).to(torch.int8).flatten(1)[:, :width]
