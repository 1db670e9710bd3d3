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

from chuan.inference.gpu.chain import chain_options, on_device, wait_for_previous
from chuan.quantization.int4 import Int4Linear
from chuan.quantization.int8 import Int8Linear

# Beyond so many rows a weight is better widened once, in memory, for the library's product.
MOST_ROWS = 64
_LEAST_ROWS = 16  # what the matrix units take at least
_SPLITS = 4  # of the inputs, where a weight has too few outputs to keep a GPU busy


def count_planes(linear: object) -> int:
    """In how many planes a linear wants its columns: 1 for as they are."""
    return 8 if isinstance(linear, Int4Linear) else 4 if isinstance(linear, Int8Linear) else 1


def multiply(x: Tensor, linear: Int8Linear | Int4Linear) -> Tensor:
    """(M, K), its columns in planes, by a weight (N, K) -> (M, N)."""
    return _launch(x, linear, gated=False, split=False)


def multiply_gated(x: Tensor, linear: Int8Linear | Int4Linear) -> Tensor:
    """As `multiply`, where the first half of the outputs are gates of the other: silu(gate) * up, (M, N / 2), in
    planes."""
    return _launch(x, linear, gated=True, split=False)


def multiply_in_parts(x: Tensor, linear: Int8Linear | Int4Linear) -> Tensor:
    """As `multiply`, but still to be summed, (S, M, N) float32: S programs share out the inputs of an output."""
    return _launch(x, linear, gated=False, split=True)


def _launch(x: Tensor, linear: Int8Linear | Int4Linear, gated: bool, split: bool) -> Tensor:
    rows, planes = x.shape[0], count_planes(linear)
    made = linear.out_features // 2 if gated else linear.out_features
    if isinstance(linear, Int4Linear):
        words, share = linear.weight_packed, linear.group_size // planes
    else:
        words, share = linear.weight.view(torch.int32), 0
    block_m, block_n, block_k, warps, stages = _choose_blocks(rows, planes, words.shape[1])
    splits = _SPLITS if split and rows > 1 else 1
    shape, dtype = ((splits, rows, made), torch.float32) if split else ((rows, made), x.dtype)
    out = torch.empty(shape, dtype=dtype, device=x.device)
    _multiply[(triton.cdiv(made, block_n), splits)](
        x,
        words,
        linear.weight_scale,
        linear.bias,
        out,
        rows,
        made,
        0x3F800000 if block_m == 1 else 0x4B000000,
        WORDS=words.shape[1],
        PLANES=planes,
        SHARE=share,
        GATED=gated,
        SPLITS=splits,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        STAGES=stages,
        num_warps=warps,
        **chain_options(x.device),
    )
    return out


def _choose_blocks(rows: int, planes: int, words: int) -> tuple[int, int, int, int, int]:
    """Rows, outputs and words of a block, its warps, and how many are on their way: the fastest of some on an H100.

    Of one row the plain units do the few products while the words come; the matrix units take at least 16.
    """
    if rows == 1:
        return (1, 4, 512, 4, 1) if words <= 1024 else (1, 4, 128, 1, 3)
    if rows <= _LEAST_ROWS:
        return _LEAST_ROWS, 64, 64, 4, 3
    return triton.next_power_of_2(rows), 64, 32, 4, 2 if planes == 8 else 3


@triton.jit
def _multiply(
    x,
    weight,
    scale,
    bias,
    out,
    rows,
    made,
    exponent,
    WORDS: tl.constexpr,
    PLANES: tl.constexpr,
    SHARE: tl.constexpr,
    GATED: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """A block of outputs for all rows. WORDS are a row's of the weight, SHARE how many of them share a scale; 0 where a
    row has one.

    `exponent` are the bits of 1.0 for one row, of 2.0**23 for several: what levels are put into to become floats. It is
    an argument, because an instruction holds one constant, and that is the mask of the levels.
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    EACH: tl.constexpr = (WORDS + BLOCK_K * SPLITS - 1) // (BLOCK_K * SPLITS) * BLOCK_K
    first = tl.program_id(1) * EACH
    words, size = _load_block(weight, scale, n, first, made, WORDS, PLANES, SHARE, BLOCK_K)
    if CHAINED:
        wait_for_previous()
    total = _sum_products(
        words, size, x, weight, scale, n, m, first, rows, made, exponent, WORDS, PLANES, SHARE, BLOCK_K, EACH, STAGES
    )
    y = _finish(total, scale, bias, n, made, SHARE, out)
    if GATED:
        up, outputs = n + made, 2 * made
        words, size = _load_block(weight, scale, up, first, outputs, WORDS, PLANES, SHARE, BLOCK_K)
        total = _sum_products(
            words,
            size,
            x,
            weight,
            scale,
            up,
            m,
            first,
            rows,
            outputs,
            exponent,
            WORDS,
            PLANES,
            SHARE,
            BLOCK_K,
            EACH,
            STAGES,
        )
        gate = y.to(tl.float32)
        y = (gate * tl.sigmoid(gate)).to(out.dtype.element_ty)
        y = y * _finish(total, scale, bias, up, outputs, SHARE, out)
    column = find_place(n, made, PLANES) if GATED else n
    place = m[None, :] * made + column[:, None]
    place += tl.program_id(1) * rows * made
    tl.store(out + place, y, mask=(n[:, None] < made) & (m[None, :] < rows))


@triton.jit
def find_place(column, width, PLANES: tl.constexpr):
    """Where a column lies among the `width` of a row, in planes."""
    return column % PLANES * (width // PLANES) + column // PLANES


@triton.jit
def _load_block(
    weight,
    scale,
    n,
    start,
    outputs,
    WORDS: tl.constexpr,
    PLANES: tl.constexpr,
    SHARE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Words (BLOCK_N, BLOCK_K) from `start` on, and the scales of their groups."""
    k = start + tl.arange(0, BLOCK_K)
    words = tl.load(
        weight + n[:, None].to(tl.int64) * WORDS + k[None, :],
        mask=(n[:, None] < outputs) & (k[None, :] < WORDS),
        other=0,
    )
    if PLANES == 4:
        words = words ^ -0x7F7F7F80  # all bits 0x80: from two's complement to a distance from -128
    if SHARE > 0:
        g = start // SHARE + tl.arange(0, BLOCK_K // SHARE)
        known = (n[:, None] < outputs) & (g[None, :] < WORDS // SHARE)
        size = tl.load(scale + n[:, None] * (WORDS // SHARE) + g[None, :], mask=known, other=0.0).to(tl.float32)
    else:
        size = 1.0
    return words, size


@triton.jit
def _sum_products(
    words,
    size,
    x,
    weight,
    scale,
    n,
    m,
    first,
    rows,
    outputs,
    exponent,
    WORDS: tl.constexpr,
    PLANES: tl.constexpr,
    SHARE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EACH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """(BLOCK_N, BLOCK_M) float32 over EACH words, with the scales of groups in it, without a row's.

    For one row the first block is there already, and each next one is on its way while one is multiplied; for several
    rows the compiler sees to that.
    """
    BLOCK_N: tl.constexpr = n.shape[0]
    BLOCK_M: tl.constexpr = m.shape[0]
    GROUPS: tl.constexpr = BLOCK_K // SHARE if SHARE > 0 else BLOCK_K
    total = tl.zeros((BLOCK_N, GROUPS if BLOCK_M == 1 else BLOCK_M), tl.float32)
    for start in tl.range(first, first + EACH, BLOCK_K, num_stages=STAGES):
        k = start + tl.arange(0, BLOCK_K)
        if BLOCK_M == 1:
            next_words, next_size = _load_block(
                weight, scale, n, start + BLOCK_K, outputs, WORDS, PLANES, SHARE, BLOCK_K
            )
            part = _sum_row(x, words, k, exponent, WORDS, PLANES)
            if SHARE > 0:
                part = tl.sum(tl.reshape(part, (BLOCK_N, GROUPS, SHARE)), axis=2) * size
            total += part
            words, size = next_words, next_size
        else:
            words, size = _load_block(weight, scale, n, start, outputs, WORDS, PLANES, SHARE, BLOCK_K)
            for plane in tl.static_range(PLANES):
                level, inverse = _pick_plane(words, plane, exponent, PLANES)
                if SHARE > 0:
                    level = tl.reshape(level, (BLOCK_N, GROUPS, SHARE)) * (size * inverse)[:, :, None]
                    level = tl.reshape(level, (BLOCK_N, BLOCK_K))
                else:
                    level = level * inverse
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
def _sum_row(x, words, k, exponent, WORDS: tl.constexpr, PLANES: tl.constexpr):
    """Products of words (BLOCK_N, BLOCK_K) and the one row of x, summed over planes.

    The bits of a plane are put into the upper end of the mantissa of 1: a shift, a mask, and no subtraction, since what
    the ones add up to is the same for all outputs. At most 2**-14 of a level is lost, less than 16-bit numbers lack.
    """
    part = tl.zeros(words.shape, tl.float32)
    ones = tl.zeros(k.shape, tl.float32)
    for plane in tl.static_range(PLANES):
        columns = tl.load(x + plane * WORDS + k, mask=k < WORDS, other=0.0).to(tl.float32)
        level, one = _spread_plane(words, plane, exponent, PLANES)
        part += level * (columns * one)[None, :]
        ones += columns * (one + (8 if PLANES == 8 else 128))
    return part - ones[None, :]


@triton.jit
def _spread_plane(words, plane: tl.constexpr, exponent, PLANES: tl.constexpr):
    """1 and what the words hold in a plane, as a fraction; and what to multiply by, to have it whole."""
    BITS: tl.constexpr = 32 // PLANES
    place: tl.constexpr = 19 if PLANES == 8 and plane % 2 == 1 else 15
    shift: tl.constexpr = place - BITS * plane
    moved = words << shift if shift > 0 else words >> -shift
    level = (moved & (((1 << BITS) - 1) << place) | exponent).to(tl.float32, bitcast=True)
    return level, float(1 << (23 - place))


@triton.jit
def _pick_plane(words, plane: tl.constexpr, exponent, PLANES: tl.constexpr):
    """What the words hold in a plane times a power of two, exactly, and the inverse of that.

    The bits are put into the mantissa of 2**23 where they are, which is cheaper than a conversion.
    """
    BITS: tl.constexpr = 32 // PLANES
    shift: tl.constexpr = plane % (PLANES // 2) * BITS
    moved = words if plane < PLANES // 2 else words >> 16
    level = (moved & (((1 << BITS) - 1) << shift) | exponent).to(tl.float32, bitcast=True)
    return level - (8388608.0 + (1 << (BITS - 1 + shift))), 1.0 / (1 << shift)


@triton.jit
def _finish(total, scale, bias, n, outputs, SHARE: tl.constexpr, out):
    """What is left to do to a block's sums, in the type of the output."""
    if SHARE == 0:
        total *= tl.load(scale + n, mask=n < outputs, other=0.0)[:, None].to(tl.float32)
    y = total.to(out.dtype.element_ty)
    if bias is not None:
        # By the first of the programs that share the inputs alone.
        y += tl.load(bias + n, mask=n + tl.program_id(1) * outputs < outputs, other=0.0)[:, None].to(y.dtype)
    return y


class WideInt4Linear(Int4Linear):
    """An `Int4Linear` that, while it is on a GPU, is widened in one pass over memory, for many rows."""

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_cuda:
            return super().forward(x)
        return F.linear(x, widen(self, x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    def take_rows(self, rows: slice) -> Int4Linear:  # type: ignore[override]
        return Int4Linear(self.weight_packed[rows], self.weight_scale[rows], self.in_features)


def widen(linear: Int4Linear, dtype: torch.dtype) -> Tensor:
    """The weight (N, K) that is meant."""
    weight = torch.empty(linear.out_features, linear.in_features, dtype=dtype, device=linear.weight_packed.device)
    words, group = linear.in_features // 8, linear.group_size // 8
    with on_device(weight.device):
        _widen[(linear.out_features,)](
            linear.weight_packed, linear.weight_scale, weight, words, group, BLOCK=triton.next_power_of_2(words)
        )
    return weight


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
