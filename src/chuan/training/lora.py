"""LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685): a frozen decoder, and small matrices beside its linears.

In: a loaded decoder, in floats or in few bits (QLoRA: Dettmers et al. 2023, https://arxiv.org/abs/2305.14314). Out: the
same decoder, changed in place; an adapter's folder as PEFT has it. Letters: N outputs, K inputs, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from chuan.checkpoints.card import Origin
from chuan.checkpoints.save import Extras
from chuan.checkpoints.trained_adapter import save_adapter
from chuan.model.decoder import Decoder
from chuan.quantization.linear import QuantizedLinear
from chuan.recipes import Settings

_Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_ALL: tuple[_Target, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoraSettings(Settings):
    """What is trained instead of the weights: pairs of rank `rank`, whose product counts `alpha` / `rank` times.

    `bits` are those of the frozen base: 16 (the type of the products), 8 or 4.
    """

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0, allow_inf_nan=False)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[_Target, ...] = Field(default=_ALL, min_length=1)
    bits: Literal[16, 8, 4] = 16


class LoraLinear(nn.Module):
    """A frozen linear layer and what is learned beside it: base(x) + B A dropout(x) alpha / R."""

    def __init__(self, base: nn.Module, outputs: int, inputs: int, settings: LoraSettings) -> None:
        super().__init__()
        self.base = base
        self.dropout = nn.Dropout(settings.dropout)
        self.scaling = settings.alpha / settings.rank
        # As PEFT starts: A as torch starts a linear layer, B at nothing.
        self.lora_A = nn.Parameter(torch.empty(settings.rank, inputs))
        self.lora_B = nn.Parameter(torch.zeros(outputs, settings.rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        return self.base(x) + F.linear(F.linear(self.dropout(x), self.lora_A), self.lora_B) * self.scaling


class FrozenLinear(nn.Module):
    """A quantized layer that gradients pass through.

    The layer is held where no walk over parameters and buffers finds it: it is neither trained, nor sharded, nor saved.
    """

    def __init__(self, layer: QuantizedLinear) -> None:
        super().__init__()
        self._held = (layer,)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        return _FrozenProduct.apply(x, self._held[0])


class _FrozenProduct(torch.autograd.Function):
    """Widens the weight on both ways; autograd alone would keep every widened weight between them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return layer(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.layer.dequantize().to(grad.dtype), None


def apply_lora(decoder: Decoder, settings: LoraSettings) -> None:
    """Freezes everything and puts pairs beside the target layers of a decoder, in float32 on its device."""
    decoder.requires_grad_(False)
    device = decoder.model.embed_tokens.weight.device
    linears = [
        (name, module)
        for name, module in decoder.model.layers.named_modules()
        if isinstance(module, nn.Linear | QuantizedLinear)
    ]
    for name, linear in linears:
        base: nn.Module = FrozenLinear(linear) if isinstance(linear, QuantizedLinear) else linear
        if name.rpartition(".")[2] in settings.targets:
            base = LoraLinear(base, linear.out_features, linear.in_features, settings).to(device)
        decoder.model.layers.set_submodule(name, base)


def write_adapter(
    folder: Path,
    weights: Mapping[str, Tensor],
    settings: LoraSettings,
    base: str,
    origin: Origin | None,
    chat: Extras | None = None,
) -> None:
    """The pairs as PEFT saves them, which other programs read. `weights` are a decoder's, by name; `chat` holds the
    chat format that the adapter has learned, where it is not the base's own."""
    halves = {
        f"base_model.model.{name}.weight": tensor for name, tensor in weights.items() if name.endswith(("_A", "_B"))
    }
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": sorted(settings.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }
    save_adapter(folder, config, halves, origin, settings.bits, chat)
