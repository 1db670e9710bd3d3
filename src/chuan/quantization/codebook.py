"""4-bit weights by a code book: NF4 and FP4, as bitsandbytes stores them (Dettmers et al. 2023, QLoRA, section 3).

In: packed codes and what they mean. Out: a small linear. Letters: N outputs, K inputs.
The weight's elements, row after row, are cut into blocks (64, usually); `W = code[nibble] * absmax[block]`. Of two
neighbouring elements the first lies in the high nibble.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from chuan.errors import ChuanError
from chuan.quantization.linear import QuantizedLinear

# The 16 quantiles of a normal distribution, scaled to [-1, 1] (QLoRA, appendix E).
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


class CodebookLinear(QuantizedLinear):
    """A linear layer with codes (ceil(N K / 2),) uint8, absmax (blocks,) float32 and a code book (16,) float32."""

    bits = 4
    weight: Tensor
    absmax: Tensor
    code: Tensor

    def __init__(
        self,
        weight: Tensor,
        absmax: Tensor,
        code: Tensor,
        shape: tuple[int, int],
        block: int,
        kind: str,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__(*shape, bias)
        self.block, self.kind = block, kind
        self.register_buffer("weight", weight)
        self.register_buffer("absmax", absmax)
        self.register_buffer("code", code)

    def dequantize(self, rows: slice = slice(None)) -> Tensor:
        first, last, _ = rows.indices(self.out_features)
        start, end = first * self.in_features, last * self.in_features
        # From the beginning of a block to the end of one: the blocks need not end with the rows.
        block, end_block = start // self.block, -(-end // self.block)
        packed = self.weight[block * self.block // 2 : -(-end_block * self.block // 2)]
        values = self.code[torch.stack((packed >> 4, packed & 15), dim=-1).flatten().int()]
        missing = (end_block - block) * self.block - values.numel()  # the last block may be short
        values = torch.nn.functional.pad(values, (0, max(missing, 0))).view(-1, self.block)
        values = values * self.absmax[block:end_block].unsqueeze(-1)
        offset = start - block * self.block
        return values.flatten()[offset : offset + end - start].view(-1, self.in_features)

    def take_rows(self, rows: slice) -> Self:
        first, last, _ = rows.indices(self.out_features)
        start, end = first * self.in_features, last * self.in_features
        if start % self.block or (end % self.block and last != self.out_features):
            raise ChuanError(
                f"its blocks of {self.block} run across q, k and v, which cannot be taken apart; load it with bits=16"
            )
        absmax = self.absmax[start // self.block : -(-end // self.block)]
        shape = (last - first, self.in_features)
        return type(self)(self.weight[start // 2 : -(-end // 2)], absmax, self.code, shape, self.block, self.kind)

    @classmethod
    def join_rows(cls, parts: Sequence[Self]) -> Self:
        first = parts[0]
        if any(part.out_features * part.in_features % part.block for part in parts[:-1]):
            raise ChuanError(f"blocks of {first.block} do not end with q, k and v, which cannot be joined; use bits=16")
        if any((part.block, part.kind) != (first.block, first.kind) for part in parts):
            raise ChuanError("q, k and v are quantized in different ways and cannot be joined; use bits=16")
        shape = (sum(part.out_features for part in parts), first.in_features)
        codes, absmax = torch.cat([part.weight for part in parts]), torch.cat([part.absmax for part in parts])
        return cls(codes, absmax, first.code, shape, first.block, first.kind)
