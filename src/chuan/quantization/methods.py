"""From floats to few bits and back: one weight, or every linear of a finished decoder.

In: a weight, or a decoder. Out: the weight in another form, or the same decoder with small linears.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from chuan.quantization.int4 import Int4Linear
from chuan.quantization.int8 import Int8Linear
from chuan.quantization.linear import QuantizedLinear

Bits = Literal[16, 8, 4]
# A weight (N, K), or a bias or norm (N,): floats, or few bits.
Stored = Tensor | QuantizedLinear


def is_quantizable(name: str) -> bool:
    """Whether a weight of the decoder, by name, is one that 8 and 4 bits mean: the linears of its layers."""
    return ".layers." in f".{name}" and name.endswith("proj.weight")


def quantize(weight: Tensor, bits: int) -> QuantizedLinear:
    """A float weight (N, K) as a linear of 8 or 4 bits, without bias."""
    return Int8Linear.quantize(weight) if bits == 8 else Int4Linear.quantize(weight)


def dequantize(stored: Stored) -> Tensor:
    """The float weight that is meant: a tensor as it is, a quantized one in float32."""
    return stored.dequantize() if isinstance(stored, QuantizedLinear) else stored


def apply_quantization(model: nn.Module, bits: int) -> None:
    """Replaces, in place, every linear of the decoder's layers; embeddings, norms and head keep their precision.

    What has these bits already stays as it is.
    """
    for name, layer in list(model.named_modules()):
        if not is_quantizable(f"{name}.weight") or getattr(layer, "bits", None) == bits:
            continue
        weight = layer.dequantize() if isinstance(layer, QuantizedLinear) else layer.weight.detach()
        small = quantize(weight, bits)
        small.bias = layer.bias
        model.set_submodule(name, small)


def find_bits(model: nn.Module) -> int:
    """The fewest bits that a linear of the model has."""
    return min((module.bits for module in model.modules() if isinstance(module, QuantizedLinear)), default=16)
