"""Linears in integer arithmetic: 8- or 4-bit weights times 8-bit activations, each product exact.

In: `Int8Linear` and `Int4Linear` layers. Out: the same weights, packed for this processor's kernels, in a layer that
quantizes what it is given. Letters: T rows, N outputs, K inputs, G inputs of a group.

Every group of G activations of a row has its own scale (64 inputs at 8 bits; the weight's groups at 4). A group with an
outlier, a value of more than 10 times its mean, gets a second digit, so that its other values are not rounded away: the
few channels that are hundreds of times larger than the rest are what makes plain 8-bit activations cost quality
(Dettmers et al. 2022, LLM.int8(), section 4). A row's result never depends on the rows beside it.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Sequence
from typing import Self, TypeGuard

import torch
from torch import Tensor, nn

from chuan.quantization.int4 import Int4Linear, unpack_nibbles
from chuan.quantization.int8 import Int8Linear
from chuan.quantization.kernels.bindings import (
    GROUP,
    INPUTS,
    PANEL,
    LinearStruct,
    NativeKernels,
    describe_linear,
    load_kernels,
)
from chuan.quantization.linear import QuantizedLinear

OUTLIER = 10.0
_LANES = 16
_PACKING = threading.Lock()  # two threads that pack one weight would free each other's


class IntegerLinear(QuantizedLinear):
    """A linear layer whose weight is packed: panels, and float32 scales (8 bits) or bfloat16 group scales (4 bits).

    Eight-bit weights may wait to be packed, in `rows` as a file has them: the kernels then pack what they read, at
    about half the speed, and an answer begins before all of a model has been packed.
    """

    panels: Tensor | None
    rows: Tensor | None
    scale: Tensor

    def __init__(self, linear: Int8Linear | Int4Linear, packed: bool = True) -> None:
        super().__init__(linear.out_features, linear.in_features, None)
        self.bias = linear.bias
        self.bits = linear.bits
        kernels = load_kernels()
        panels, rows = None, None
        if isinstance(linear, Int8Linear):
            self.group = GROUP
            if kernels is None:
                panels = linear.weight
            elif packed or not linear.weight.is_contiguous():
                panels = kernels.pack8(linear.weight)
            else:
                rows = linear.weight
            # A copy: a view would keep the file mapped.
            scale = _pad(linear.weight_scale.to(torch.float32, copy=True).flatten(), linear.out_features)
        else:
            self.group = linear.group_size
            nibbles = linear.weight_packed
            panels = nibbles if kernels is None else kernels.pack4(nibbles, linear.in_features)
            by_panel = _pad(linear.weight_scale, linear.out_features).unflatten(0, (-1, PANEL))
            scale = by_panel.transpose(1, 2).to(torch.bfloat16).contiguous()
        self.register_buffer("panels", panels)
        self.register_buffer("rows", rows)
        self.register_buffer("scale", scale)

    @staticmethod
    def takes(linear: object) -> TypeGuard[Int8Linear | Int4Linear]:
        """Whether a layer can be one without changing: at 4 bits the scales must be bfloat16 numbers."""
        if isinstance(linear, Int4Linear):
            scale = linear.weight_scale
            fits = linear.group_size in (32, 64, 128) and linear.in_features % linear.group_size == 0
            return fits and torch.equal(scale.to(torch.bfloat16).to(scale.dtype), scale)
        return isinstance(linear, Int8Linear)

    def pack(self, kernels: NativeKernels) -> None:
        """Packs a weight that waits for it, and lets go of the file."""
        with _PACKING, torch.inference_mode(False):
            if self.rows is not None:
                self.panels = kernels.pack8(self.rows)  # before `rows` goes: others may be reading
                self.rows = None

    def unpack(self, rows: slice = slice(None)) -> Int8Linear | Int4Linear:
        """The layer that these rows were packed from, without bias."""
        first, last, _ = rows.indices(self.out_features)
        waiting = self.rows
        if waiting is not None:
            return Int8Linear(waiting[rows].clone(), self.scale[first:last].unsqueeze(-1))
        assert self.panels is not None
        kernels, count, width = load_kernels(), last - first, self.in_features
        if self.bits == 8:
            whole = self.panels[rows] if kernels is None else kernels.unpack8(self.panels, first, count, width)
            return Int8Linear(whole, self.scale[first:last].unsqueeze(-1))
        nibbles = self.panels[rows] if kernels is None else kernels.unpack4(self.panels, first, count, width)
        return Int4Linear(nibbles, self.scale.transpose(1, 2).flatten(0, 1)[first:last].contiguous(), width)

    def describe(self) -> LinearStruct:
        """The structure that the compiled kernels read; it points into the tensors of `list_held`."""
        weight = self.panels if self.rows is None else self.rows
        assert weight is not None
        return describe_linear(
            weight, self.in_features, self.out_features, self.bits, self.group, self.scale, self.padded_bias
        )

    def list_held(self) -> list[Tensor | None]:
        """What must outlive the structure of `describe`, even where this layer is packed meanwhile."""
        return [self.panels, self.rows, self.scale, self.padded_bias]

    @functools.cached_property
    def padded_bias(self) -> Tensor | None:
        """The bias in float32, as long as the panels."""
        return None if self.bias is None else _pad(self.bias.detach().float(), self.out_features)

    def dequantize(self, rows: slice = slice(None)) -> Tensor:
        return self.unpack(rows).dequantize()

    def take_rows(self, rows: slice) -> Self:
        raise NotImplementedError("unpack first")

    @classmethod
    def join_rows(cls, parts: Sequence[Self]) -> Self:
        raise NotImplementedError("unpack first")

    def forward(self, x: Tensor) -> Tensor:
        if self.rows is not None:
            kernels = load_kernels()
            assert kernels is not None
            self.pack(kernels)
        assert self.panels is not None
        flat = x.reshape(-1, self.in_features).float().contiguous()
        y = multiply(
            flat, self.panels, self.scale, self.padded_bias, self.out_features, self.in_features, self.bits, self.group
        )
        return y.view(*x.shape[:-1], self.out_features).to(x.dtype)


def apply_integer_arithmetic(model: nn.Module) -> None:
    """Replaces, in place, the decoder's 8- and 4-bit linears, and its head by one of 8 bits.

    What cannot be packed as it is (NF4, scales that are no bfloat16 numbers) stays.
    """
    for name, layer in list(model.named_modules()):
        if IntegerLinear.takes(layer):
            model.set_submodule(name, IntegerLinear(layer))
    head = model.get_submodule("lm_head")
    if not any(isinstance(layer, IntegerLinear) for layer in model.modules()):
        return
    if isinstance(head, nn.Linear):
        model.set_submodule("lm_head", IntegerLinear(Int8Linear.quantize(head.weight.detach())))
    if load_kernels() is None:
        warnings.warn(
            "no compiled kernels: 8 and 4 bits run in plain torch, exactly but many times slower; install with a C "
            "compiler at hand",
            stacklevel=2,
        )


@torch.library.custom_op("chuan::integer_linear", mutates_args=())
def multiply(
    x: Tensor, panels: Tensor, scale: Tensor, bias: Tensor | None, outputs: int, width: int, bits: int, group: int
) -> Tensor:
    """(T, K) float32 by a packed weight (N, K) -> (T, N) float32; arguments as `IntegerLinear` holds them."""
    kernels = load_kernels()
    if kernels is not None:
        return kernels.linear(describe_linear(panels, width, outputs, bits, group, scale, bias), x)
    if bits == 8:
        return multiply_in_torch(x, panels, None, scale[:outputs], bias, group)
    by_output = scale.transpose(1, 2).flatten(0, 1)[:outputs].float()
    return multiply_in_torch(x, unpack_nibbles(panels, width), by_output, None, bias, group)


@multiply.register_fake
def _(x, panels, scale, bias, outputs, width, bits, group):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], outputs)


def multiply_in_torch(
    x: Tensor, weight: Tensor, group_scale: Tensor | None, scale: Tensor | None, bias: Tensor | None, group: int
) -> Tensor:
    """What the kernels compute, bit for bit: weight (N, K) integers, group_scale (N, K / G), scale (N,).

    Sums over a group stay below 2**24, where float32 is exact, so the integer products may be float products.
    """
    outputs, width = weight.shape
    padding = -width % group
    weight = nn.functional.pad(weight, (0, padding)).unflatten(1, (-1, group))
    first, second, activation_scale = quantize_activations(nn.functional.pad(x, (0, padding)), group)
    y = torch.zeros(x.shape[0], outputs)
    second_scale = activation_scale * torch.tensor(1.0 / 254.0, dtype=torch.float32)
    # INPUTS inputs after the other, their first digits before their second ones, as the kernels have it.
    for block in torch.arange(weight.shape[1]).split(INPUTS // group):
        for digits, size in ((first, activation_scale), (second, second_scale)):
            for index in block.tolist():
                factor = size[:, index, None]
                by_output = factor if group_scale is None else factor * group_scale[None, :, index]
                y = y + (digits[:, index] @ weight[:, index].float().T) * by_output
    if scale is not None:
        y = y * scale
    return y if bias is None else y + bias[:outputs]


def quantize_activations(x: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """(T, K) -> digits (T, K / G, G), second digits, and scales (T, K / G): x ~ scale * (first + second / 254).

    A group with NaN or infinity gets the scale NaN.
    """
    x = x.unflatten(1, (-1, group))
    top = x.abs().amax(dim=-1)
    finite = torch.isfinite(top)
    some = finite & (top > 1e-30)
    safe = torch.where(some, top, torch.ones_like(top))
    inverse = torch.where(some, torch.full_like(top, 127.0) / safe, torch.zeros_like(top)).unsqueeze(-1)
    values = torch.where(some.unsqueeze(-1), x, torch.zeros_like(x))
    first = (values * inverse).round()
    # In the kernels' order: 16 lanes first, so that both find the same outliers.
    lanes = values.abs().unflatten(-1, (-1, _LANES))
    sums = functools.reduce(torch.add, lanes.unbind(-2))
    total = functools.reduce(torch.add, sums.unbind(-1))
    outlier = some & (top * group > OUTLIER * total)
    second = torch.where(outlier.unsqueeze(-1), ((values * inverse - first) * 254.0).round(), torch.zeros_like(first))
    scale = torch.where(some, safe / 127.0, torch.zeros_like(top))
    return first, second, torch.where(finite, scale, torch.full_like(top, torch.nan))


def _pad(rows: Tensor, outputs: int) -> Tensor:
    missing = -outputs % PANEL
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows.contiguous()
