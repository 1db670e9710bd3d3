"""Linears of few rows by weights of 8 or 4 bits: each weight is read once, as it lies, and widened in registers.

In: rows of activations and an `Int8Linear` or `Int4Linear` on a GPU. Out: rows. Letters: M rows, N outputs, K inputs.

Weights are read as words of 32 bits, each of which holds four or eight neighbouring inputs. Beside the i-th of every
word of a row go the columns i, 4 + i, 8 + i ... of the activations (8 bits): whoever makes activations for such a
weight writes these next to each other, as plane i, so that they are read as fast as any.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from chuan.quantization.int4 import Int4Linear
from chuan.quantization.int8 import Int8Linear

# Beyond so many rows a weight is better widened once, in memory, for the library's product.
MOST_ROWS = 64
_LEAST_ROWS = 16  # what the matrix units take at least


def count_planes(linear: object) -> int:
    """In how many planes a linear wants its columns: 1 for as they are."""
    return 8 if isinstance(linear, Int4Linear) else 4 if isinstance(linear, Int8Linear) else 1


def multiply(x: Tensor, linear: Int8Linear | Int4Linear, residual: Tensor | None = None, gated: bool = False) -> Tensor:
    """(M, K), its columns in planes, by a weight (N, K) -> (M, N), plus `residual` (M, N).

    With `gated` the first half of the outputs are gates of the other half: silu(gate) * up, (M, N / 2), in planes.
    """
    rows, planes = x.shape[0], count_planes(linear)
    made = linear.out_features // 2 if gated else linear.out_features
    out = torch.empty(rows, made, dtype=x.dtype, device=x.device)
    if isinstance(linear, Int4Linear):
        words, share = linear.weight_packed, linear.group_size // planes
    else:
        words, share = linear.weight.view(torch.int32), 0
    block_m, block_n, block_k, stages = _choose_blocks(rows)
    _multiply[(triton.cdiv(made, block_n),)](
        x,
        words,
        linear.weight_scale,
        linear.bias,
        residual,
        out,
        rows,
        made,
        WORDS=words.shape[1],
        PLANES=planes,
        SHARE=share,
        GATED=gated,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        STAGES=stages,
        num_warps=4,
    )
    return out


def _choose_blocks(rows: int) -> tuple[int, int, int, int]:
    """Rows, outputs and words of a block, and how many blocks are on their way: the fastest of some on an H100.

    Of one row the plain units do the few products while the words come; the matrix units take at least 16.
    """
    if rows == 1:
        return 1, 8, 256, 3
    if rows <= _LEAST_ROWS:
        return _LEAST_ROWS, 32, 64, 3
    return triton.next_power_of_2(rows), 64, 32, 2


@triton.jit
def _multiply(
    x,
    weight,
    scale,
    bias,
    residual,
    out,
    rows,
    made,
    WORDS: tl.constexpr,
    PLANES: tl.constexpr,
    SHARE: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """A block of outputs for all rows. WORDS are a row's of the weight, SHARE how many of them share a scale; 0 where a
    row has one."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    total = _sum_products(x, weight, scale, n, m, rows, made, WORDS, PLANES, SHARE, BLOCK_M, BLOCK_N, BLOCK_K, STAGES)
    y = _finish(total, scale, bias, n, made, SHARE, out)
    if GATED:
        up, outputs = n + made, 2 * made
        total = _sum_products(
            x, weight, scale, up, m, rows, outputs, WORDS, PLANES, SHARE, BLOCK_M, BLOCK_N, BLOCK_K, STAGES
        )
        gate = y.to(tl.float32)
        y = (gate * tl.sigmoid(gate)).to(out.dtype.element_ty)
        y = y * _finish(total, scale, bias, up, outputs, SHARE, out)
    inside = (n[:, None] < made) & (m[None, :] < rows)
    place = m[None, :] * made + n[:, None]
    if residual is not None:
        y += tl.load(residual + place, mask=inside, other=0.0)
    if GATED:
        place = m[None, :] * made + (n % PLANES * (made // PLANES) + n // PLANES)[:, None]
    tl.store(out + place, y, mask=inside)


@triton.jit
def _sum_products(
    x,
    weight,
    scale,
    n,
    m,
    rows,
    outputs,
    WORDS: tl.constexpr,
    PLANES: tl.constexpr,
    SHARE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """(BLOCK_N, BLOCK_M) float32; with the scales of groups in it, without a row's."""
    GROUPS: tl.constexpr = BLOCK_K // SHARE if SHARE > 0 else BLOCK_K
    total = tl.zeros((BLOCK_N, GROUPS if BLOCK_M == 1 else BLOCK_M), tl.float32)
    for start in tl.range(0, WORDS, BLOCK_K, num_stages=STAGES):
        k = start + tl.arange(0, BLOCK_K)
        taken = (n[:, None] < outputs) & (k[None, :] < WORDS)
        words = tl.load(weight + n[:, None].to(tl.int64) * WORDS + k[None, :], mask=taken, other=0)
        if SHARE > 0:
            g = start // SHARE + tl.arange(0, GROUPS)
            place = n[:, None] * (WORDS // SHARE) + g[None, :]
            size = tl.load(scale + place, mask=(n[:, None] < outputs) & (g[None, :] < WORDS // SHARE), other=0.0)
            size = size.to(tl.float32)
        if BLOCK_M == 1:
            part = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
            for plane in tl.static_range(PLANES):
                columns = tl.load(x + plane * WORDS + k, mask=k < WORDS, other=0.0).to(tl.float32)
                part += _pick_plane(words, plane, PLANES) * (columns * _plane_size(plane, PLANES))[None, :]
            if SHARE > 0:
                part = tl.sum(tl.reshape(part, (BLOCK_N, GROUPS, SHARE)), axis=2) * size
            total += part
        else:
            for plane in tl.static_range(PLANES):
                level = _pick_plane(words, plane, PLANES)
                if SHARE > 0:
                    factor = (size * _plane_size(plane, PLANES))[:, :, None]
                    level = tl.reshape(tl.reshape(level, (BLOCK_N, GROUPS, SHARE)) * factor, (BLOCK_N, BLOCK_K))
                else:
                    level = level * _plane_size(plane, PLANES)
                columns = tl.load(
                    x + m[None, :] * (WORDS * PLANES) + plane * WORDS + k[:, None],
                    mask=(m[None, :] < rows) & (k[:, None] < WORDS),
                    other=0.0,
                )
                total = tl.dot(level.to(columns.dtype), columns, total, input_precision="ieee")
    if BLOCK_M == 1:
        total = tl.sum(total, axis=1)[:, None]
    return total


@triton.jit
def _pick_plane(words, plane: tl.constexpr, PLANES: tl.constexpr):
    """What the words hold in a plane, as floats, times a power of two that `_plane_size` is the inverse of.

    The bits are put into the mantissa of 2**23 where they are: exact, and cheaper than shifts and conversions.
    """
    BITS: tl.constexpr = 32 // PLANES
    shift: tl.constexpr = plane % (PLANES // 2) * BITS
    zero: tl.constexpr = 1 << (BITS - 1 + shift)
    if plane >= PLANES // 2:
        words = words >> 16
    found = words & (((1 << BITS) - 1) << shift)
    if BITS == 8:  # in two's complement
        found = found ^ (0x4B000000 | zero)
    else:
        found = found | 0x4B000000
    return found.to(tl.float32, bitcast=True) - (8388608.0 + zero)


@triton.jit
def _plane_size(plane: tl.constexpr, PLANES: tl.constexpr):
    return 1.0 / (1 << (plane % (PLANES // 2) * (32 // PLANES)))


@triton.jit
def _finish(total, scale, bias, n, outputs, SHARE: tl.constexpr, out):
    """What is left to do to a block's sums, in the type of the output."""
    if SHARE == 0:
        total *= tl.load(scale + n, mask=n < outputs, other=0.0)[:, None].to(tl.float32)
    y = total.to(out.dtype.element_ty)
    if bias is not None:
        y += tl.load(bias + n, mask=n < outputs, other=0.0)[:, None].to(y.dtype)
    return y


class WideInt4Linear(Int4Linear):
    """An `Int4Linear` on a GPU that is widened in one pass over memory, for many rows."""

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.empty(self.out_features, self.in_features, dtype=x.dtype, device=x.device)
        words, group = self.in_features // 8, self.group_size // 8
        _widen[(self.out_features,)](
            self.weight_packed, self.weight_scale, weight, words, group, BLOCK=triton.next_power_of_2(words)
        )
        return F.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))


@triton.jit
def _widen(packed, scale, out, words, group, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    w = tl.arange(0, BLOCK)
    inside = w < words
    value = tl.load(packed + row * words + w, mask=inside, other=0)
    size = tl.load(scale + row * (words // group) + w // group, mask=inside, other=0.0).to(tl.float32)
    plane = tl.arange(0, 8)
    level = ((value[:, None] >> (4 * plane)[None, :]) & 0xF) - 8
    place = row * words * 8 + w[:, None] * 8 + plane[None, :]
    tl.store(out + place, (level.to(tl.float32) * size[:, None]).to(out.dtype.element_ty), mask=inside[:, None])
