"""What lies between a layer's linears, for a few rows: norms, rotary positions, attention over pages.

In: rows of several sequences, each with its place in the cache and its pages. Out: rows. Letters: M rows, H query
heads, K key/value heads, D width of a head, S splits of a sequence, P pages of the longest one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from chuan.inference.gpu.chain import chain_options, wait_for_previous
from chuan.inference.gpu.linears import find_place

_LEAST_HEADS = 16  # what the matrix units take at least


def normalise(x: Tensor, parts: Tensor | None, weight: Tensor, eps: float, planes: int) -> tuple[Tensor, Tensor]:
    """x (M, W) plus the sum of `parts` (S, M, W); and the RMSNorm of that, its columns in planes (linears.py)."""
    rows, width = x.shape
    total, out = x if parts is None else torch.empty_like(x), torch.empty_like(x)
    _normalise[(rows,)](
        x,
        parts,
        weight,
        total,
        out,
        rows,
        width,
        eps,
        PARTS=0 if parts is None else len(parts),
        PLANES=planes,
        BLOCK=triton.next_power_of_2(width),
        num_warps=8,
        **chain_options(x.device),
    )
    return total, out


@triton.jit
def _normalise(
    x,
    parts,
    weight,
    total,
    out,
    rows,
    width,
    eps,
    PARTS: tl.constexpr,
    PLANES: tl.constexpr,
    BLOCK: tl.constexpr,
    CHAINED: tl.constexpr,
):
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < width
    factor = tl.load(weight + column, mask=inside, other=0.0)
    if CHAINED:
        wait_for_previous()
    values = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    if PARTS > 0:
        for part in tl.static_range(PARTS):
            values += tl.load(parts + (part * rows + row) * width + column, mask=inside, other=0.0).to(tl.float32)
        rounded = values.to(total.dtype.element_ty)
        tl.store(total + row * width + column, rounded, mask=inside)
        values = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values) / width + eps)
    y = factor * (values * scale).to(out.dtype.element_ty)
    # Turned here, where it costs less than writing every number by itself.
    y = tl.trans(tl.reshape(y, (BLOCK // PLANES, PLANES)))
    plane, word, words = tl.arange(0, PLANES), tl.arange(0, BLOCK // PLANES), width // PLANES
    tl.store(out + row * width + plane[:, None] * words + word[None, :], y, mask=word[None, :] < words)


def rotate_and_store(
    qkv: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, keys: Tensor, values: Tensor, heads: int
) -> Tensor:
    """(M, (H + 2 K) D) -> rotated queries (M, H D); rotated keys and values go to their slots (M,) of the cache.

    cos, sin: (M, D) float32. keys, values: (tokens, K, D).
    """
    _, kv_heads, size = keys.shape
    queries = torch.empty(len(qkv), heads * size, dtype=qkv.dtype, device=qkv.device)
    _rotate_and_store[(len(qkv), heads + 2 * kv_heads)](
        qkv,
        cos,
        sin,
        slots,
        slots.stride(0),
        queries,
        keys,
        values,
        HEADS=heads,
        KV_HEADS=kv_heads,
        SIZE=size,
        BLOCK=triton.next_power_of_2(size // 2),
        num_warps=1,
        **chain_options(qkv.device),
    )
    return queries


@triton.jit
def _rotate_and_store(
    qkv,
    cos,
    sin,
    slots,
    slot_stride,
    queries,
    keys,
    values,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHAINED: tl.constexpr,
):
    row, head = tl.program_id(0), tl.program_id(1)
    half = SIZE // 2
    d = tl.arange(0, BLOCK)
    inside = d < half
    slot = tl.load(slots + row * slot_stride).to(tl.int64)
    c = tl.load(cos + row * SIZE + d, mask=inside, other=0.0)
    s = tl.load(sin + row * SIZE + d, mask=inside, other=0.0)
    if CHAINED:
        wait_for_previous()
    source = qkv + (row * (HEADS + 2 * KV_HEADS) + head) * SIZE + d
    left, right = tl.load(source, mask=inside, other=0.0), tl.load(source + half, mask=inside, other=0.0)
    if head < HEADS + KV_HEADS:
        a, b = left.to(tl.float32), right.to(tl.float32)
        left, right = (a * c - b * s).to(left.dtype), (b * c + a * s).to(left.dtype)
    if head < HEADS:
        target = queries + (row * HEADS + head) * SIZE + d
    elif head < HEADS + KV_HEADS:
        target = keys + (slot * KV_HEADS + head - HEADS) * SIZE + d
    else:
        target = values + (slot * KV_HEADS + head - HEADS - KV_HEADS) * SIZE + d
    tl.store(target, left, mask=inside)
    tl.store(target + half, right, mask=inside)


def attend_pages(
    queries: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, pages: Tensor, page: int, splits: int, planes: int
) -> Tensor:
    """(M, H D) -> (M, H D): each row attends to the first `lengths` (M,) tokens on its `pages` (M, P).

    A sequence is read by `splits` programs at a time, whose parts are then joined. The columns come in planes.
    """
    rows = len(queries)
    _, kv_heads, size = keys.shape
    heads = queries.shape[1] // size
    out = torch.empty_like(queries)
    parts = torch.empty(rows, heads, splits, size, dtype=torch.float32, device=queries.device) if splits > 1 else out
    logs = torch.empty(rows, heads, splits, dtype=torch.float32, device=queries.device) if splits > 1 else None
    shape = {"HEADS": heads, "SIZE": size, "SPLITS": splits, "PLANES": planes, **chain_options(queries.device)}
    _attend[(rows, kv_heads, splits)](
        queries,
        keys,
        values,
        lengths,
        lengths.stride(0),
        pages,
        pages.stride(0),
        parts,
        logs,
        size**-0.5,
        KV_HEADS=kv_heads,
        PAGE=page,
        BLOCK_H=max(_LEAST_HEADS, triton.next_power_of_2(heads // kv_heads)),
        BLOCK_D=max(16, triton.next_power_of_2(size)),
        num_warps=4,
        **shape,
    )
    if splits > 1:
        _join[(rows, heads)](parts, logs, out, BLOCK_D=triton.next_power_of_2(size), num_warps=1, **shape)
    return out


@triton.jit
def _attend(
    queries,
    keys,
    values,
    lengths,
    length_stride,
    pages,
    page_stride,
    parts,
    logs,
    factor,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    SPLITS: tl.constexpr,
    PLANES: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """One row, the query heads of one key/value head, one part of the sequence: softmax as it goes (Milakov and
    Gimelshein 2018, https://arxiv.org/abs/1805.02867, algorithm 3)."""
    row, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    shared: tl.constexpr = HEADS // KV_HEADS
    length = tl.load(lengths + row * length_stride)
    if CHAINED:
        wait_for_previous()
    each = tl.cdiv(tl.cdiv(length, PAGE), SPLITS)
    h, d, t = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_D), tl.arange(0, PAGE)
    head = kv_head * shared + h
    query = tl.load(
        queries + (row * HEADS + head[:, None]) * SIZE + d[None, :],
        mask=(h[:, None] < shared) & (d[None, :] < SIZE),
        other=0.0,
    )
    top = tl.full((BLOCK_H,), -float("inf"), tl.float32)
    mass = tl.zeros((BLOCK_H,), tl.float32)
    total = tl.zeros((BLOCK_H, BLOCK_D), tl.float32)
    last = tl.minimum((split + 1) * each, tl.cdiv(length, PAGE))
    for index in range(split * each, last):
        slot = tl.load(pages + row * page_stride + index).to(tl.int64) * PAGE + t
        seen = index * PAGE + t < length
        key = tl.load(
            keys + (slot[None, :] * KV_HEADS + kv_head) * SIZE + d[:, None],
            mask=seen[None, :] & (d[:, None] < SIZE),
            other=0.0,
        )
        scores = tl.dot(query, key, input_precision="ieee") * factor
        scores = tl.where(seen[None, :], scores, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))
        weight = tl.exp(scores - higher[:, None])
        before = tl.exp(top - higher)
        value = tl.load(
            values + (slot[:, None] * KV_HEADS + kv_head) * SIZE + d[None, :],
            mask=seen[:, None] & (d[None, :] < SIZE),
            other=0.0,
        )
        total = tl.dot(weight.to(value.dtype), value, total * before[:, None], input_precision="ieee")
        mass = mass * before + tl.sum(weight, axis=1)
        top = higher
    some = tl.where(mass > 0, mass, 1.0)
    total = total / some[:, None]
    inside = (h[:, None] < shared) & (d[None, :] < SIZE)
    if SPLITS == 1:
        column = head[:, None] * SIZE + d[None, :]
        place = row * HEADS * SIZE + find_place(column, HEADS * SIZE, PLANES)
        tl.store(parts + place, total.to(parts.dtype.element_ty), mask=inside)
    else:
        part = (row * HEADS + head) * SPLITS + split
        tl.store(parts + part[:, None] * SIZE + d[None, :], total, mask=inside)
        tl.store(logs + part, tl.where(mass > 0, top + tl.log(some), -float("inf")), mask=h < shared)


@triton.jit
def _join(
    parts,
    logs,
    out,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    SPLITS: tl.constexpr,
    PLANES: tl.constexpr,
    CHAINED: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The parts of a row and head, each weighed by what its softmax divided by."""
    if CHAINED:
        wait_for_previous()
    row, head = tl.program_id(0), tl.program_id(1)
    s, d = tl.arange(0, SPLITS), tl.arange(0, BLOCK_D)
    log = tl.load(logs + (row * HEADS + head) * SPLITS + s)
    share = tl.exp(log - tl.maximum(tl.max(log, axis=0), -1e30))  # a padding row has nothing but -inf
    mass = tl.sum(share, axis=0)
    part = tl.load(
        parts + ((row * HEADS + head) * SPLITS + s[:, None]) * SIZE + d[None, :], mask=d[None, :] < SIZE, other=0.0
    )
    y = tl.sum(part * share[:, None], axis=0) / tl.where(mass > 0, mass, 1.0)
    column = head * SIZE + d
    place = row * HEADS * SIZE + find_place(column, HEADS * SIZE, PLANES)
    tl.store(out + place, y.to(out.dtype.element_ty), mask=d < SIZE)
