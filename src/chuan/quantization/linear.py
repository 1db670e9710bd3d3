"""What every quantized linear is: a module that knows its weight in floats, some rows at a time.

In: activations. Out: activations. Simple and correct to its definition, not fast. Letters: N outputs, K inputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Elements that are widened at a time: a whole feed-forward matrix in float32 would be 180 MB, and pass through several
# forms on its way.
_BLOCK = 1 << 21


class QuantizedLinear(nn.Module, ABC):
    """A linear layer whose weight (N, K) is stored in few bits."""

    bits: int
    in_features: int
    out_features: int
    bias: nn.Parameter | None

    def __init__(self, out_features: int, in_features: int, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = out_features, in_features
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @abstractmethod
    def dequantize(self, rows: slice = slice(None)) -> Tensor:
        """The weight that is meant, or rows of it, in float32."""

    @abstractmethod
    def take_rows(self, rows: slice) -> Self:
        """The same layer with these outputs alone, without bias."""

    @classmethod
    @abstractmethod
    def join_rows(cls, parts: Sequence[Self]) -> Self:
        """Layers of the same inputs as one, their outputs one behind the other, without bias."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        step = max(1, _BLOCK // self.in_features)
        starts = range(0, self.out_features, step)
        blocks = [F.linear(x, self.dequantize(slice(start, start + step)).to(x.dtype)) for start in starts]
        y = torch.cat(blocks, dim=-1)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"
