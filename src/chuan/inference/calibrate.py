"""Calibrated 4 bits: a text runs through the layers, and each is rounded by the inputs that it really gets.

In: a source of weights, its tokenizer and a text. Out: the same source, its linears in 4 bits. One layer is in memory
at a time, in float32, with the activations of the text in front of it; a layer sees what the rounded layers before it
give, and so makes up for their errors too. Letters: T tokens of a window, W width, K inputs of a linear.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chuan.checkpoints.source import WeightSource
from chuan.errors import ChuanError
from chuan.model.decoder import DecoderLayer
from chuan.model.rope import Rope
from chuan.quantization.gptq import quantize_calibrated
from chuan.quantization.int4 import Int4Linear
from chuan.quantization.methods import Stored, dequantize, is_quantizable
from chuan.tokenizer.tokenizer import Tokenizer

WINDOW = 512
LEAST_WINDOWS, MOST_WINDOWS = 8, 32
_CHARACTERS = 2_000_000  # of a text that are looked at


class CalibratedSource:
    """A source whose linears come out in 4 bits, fitted to a text. Its layers must be asked for in order."""

    def __init__(self, source: WeightSource, windows: Tensor) -> None:
        """`windows` (windows, T) are token ids."""
        self.config = source.config
        self._source = source
        self._rotary = Rope(source.config).cos_sin(torch.arange(windows.shape[1]).unsqueeze(0))
        self._windows = windows
        self._activations: list[Tensor] = []
        self._next_layer = 0
        self._fitted: dict[str, Int4Linear] = {}

    @property
    def dtype(self) -> torch.dtype:
        return self._source.dtype

    @property
    def stored_bits(self) -> int:
        return 4

    def read(self, name: str) -> Stored:
        return self._source.read(name)

    def fit(self, name: str, stored: Stored) -> Stored:
        """What was read; a linear in 4 bits. The first of a layer costs the whole layer's calibration."""
        if not is_quantizable(name):
            return self._source.fit(name, stored)
        while name not in self._fitted:
            self._fit_layer()
        return self._fitted.pop(name)

    @torch.inference_mode()
    def _fit_layer(self) -> None:
        if not self._activations:
            table = dequantize(self._source.read("model.embed_tokens.weight"))
            self._activations = [F.embedding(window.unsqueeze(0), table).float() for window in self._windows]
        prefix = f"model.layers.{self._next_layer}."
        self._next_layer += 1
        layer = self._read_layer(prefix)
        attention, mlp = layer.self_attn, layer.mlp

        def attend(x: Tensor) -> Tensor:
            return attention(layer.input_layernorm(x), self._rotary, None, None)

        def feed(x: Tensor) -> Tensor:
            return mlp(layer.post_attention_layernorm(x))

        first = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        self._fit_linears(layer, prefix, first, lambda x: attention.q_proj(layer.input_layernorm(x)))
        self._fit_linears(layer, prefix, ("self_attn.o_proj",), attend)
        for x in self._activations:
            x += attend(x)
        second = ("mlp.gate_proj", "mlp.up_proj")
        self._fit_linears(layer, prefix, second, lambda x: mlp.gate_proj(layer.post_attention_layernorm(x)))
        self._fit_linears(layer, prefix, ("mlp.down_proj",), feed)
        for x in self._activations:
            x += feed(x)

    def _fit_linears(
        self, layer: DecoderLayer, prefix: str, names: Sequence[str], run: Callable[[Tensor], Tensor]
    ) -> None:
        """Fits linears that have the same inputs: those that the first of them gets while `run` runs."""
        hessian = _sum_outer_products(layer.get_submodule(names[0]), run, self._activations)
        for name in names:
            linear = layer.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            small = quantize_calibrated(linear.weight.to(self.dtype), hessian)
            linear.weight = _parameter(small.dequantize())
            self._fitted[f"{prefix}{name}.weight"] = small

    def _read_layer(self, prefix: str) -> DecoderLayer:
        with torch.device("meta"):
            layer = DecoderLayer(self.config, 0)
        for name, _ in list(layer.named_parameters()):
            module_name, _, attribute = name.rpartition(".")
            weight = dequantize(self._source.read(prefix + name)).float()
            setattr(layer.get_submodule(module_name), attribute, _parameter(weight))
        return layer


def load_windows(path: Path, tokenizer: Tokenizer, context_length: int) -> Tensor:
    """A text file -> (windows, T) ids, spread evenly over it. Raises ChuanError where it is no text, or too short."""
    try:
        with path.open(encoding="utf-8") as file:
            ids = tokenizer.encode(file.read(_CHARACTERS))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ChuanError(f"cannot calibrate with {path}: {reason}") from None
    prefix = list(tokenizer.prompt_prefix)
    length = min(WINDOW, context_length) - len(prefix)
    count = min(len(ids) // length, MOST_WINDOWS)
    if count < LEAST_WINDOWS:
        raise ChuanError(
            f"{path} has {len(ids)} tokens; calibration needs {LEAST_WINDOWS * length} at least, "
            f"and {MOST_WINDOWS * length} are better: give a longer text"
        )
    starts = [index * (len(ids) - length) // (count - 1) for index in range(count)]
    return torch.tensor([prefix + ids[start : start + length] for start in starts])


def _sum_outer_products(linear: nn.Module, run: Callable[[Tensor], Tensor], activations: Sequence[Tensor]) -> Tensor:
    """(K, K): the sum of x xᵀ over the inputs that `linear` gets."""
    total = torch.empty(0)

    def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal total
        rows = inputs[0].flatten(0, -2)
        total = rows.t() @ rows if not total.numel() else total.addmm_(rows.t(), rows)

    hook = linear.register_forward_pre_hook(add)
    for x in activations:
        run(x)
    hook.remove()
    return total


def _parameter(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight, requires_grad=False)
