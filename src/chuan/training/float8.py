"""Matrix products of the layers in 8-bit floats, by torchao: e4m3 for weights and activations, e5m2 for gradients, each
tensor scaled to its largest number (Micikevicius et al. 2022, https://arxiv.org/abs/2209.05433).

In: a model that is not yet spread over ranks. Out: the same model, its layers' linears changed in place. Weights,
gradients and the optimizer stay as they are.
"""

from __future__ import annotations

import importlib

import torch
from torch import nn

from chuan.errors import ChuanError
from chuan.training.loss import LanguageModelLoss

_MULTIPLE = 16  # of the kernels


def apply_float8(model: LanguageModelLoss, device: torch.device) -> None:
    """A CPU emulates it, slowly. Raises ChuanError where a GPU has no such products or a width does not suit them."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        raise ChuanError("dtype float8 wants a GPU of NVIDIA's Ada or Hopper generation or later; use bfloat16")
    layers = model.decoder.model.layers
    for name, linear in layers.named_modules():
        if isinstance(linear, nn.Linear) and (linear.in_features % _MULTIPLE or linear.out_features % _MULTIPLE):
            raise ChuanError(
                f"dtype float8 wants widths that are multiples of {_MULTIPLE}, and {name} is {linear.out_features} x "
                f"{linear.in_features}; use bfloat16"
            )
    # Not at the top: it takes two seconds, and prints which of its kernels this machine lacks.
    float8 = importlib.import_module("torchao.float8")
    config = float8.Float8LinearConfig(emulate=device.type != "cuda")
    float8.convert_to_float8_training(layers, config=config)
