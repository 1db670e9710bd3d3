"""Logits of a model that is not in memory: its weights are fed in reading order and each is used once.

In: weights, one at a time. Out: the logits of some fixed ids, in float32. This is how a write is checked: what was
read, what was written and what comes back from the disk must say the same. Peak memory is one layer as it is stored.
Letters: T tokens, W width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chuan.errors import ChuanError
from chuan.model.config import ModelConfig
from chuan.model.decoder import DecoderLayer, RMSNorm
from chuan.model.rope import Rope
from chuan.quantization.linear import QuantizedLinear
from chuan.quantization.methods import Stored

_TOKENS = 32
_ROWS = 8192  # of the head at a time: a 125,696-row head in float32 would be 2 GB


class Probe:
    """Feed every weight of `list_weights`, in that order; then `logits` is (T, V)."""

    def __init__(self, config: ModelConfig) -> None:
        generator = torch.Generator().manual_seed(0)
        tokens = min(_TOKENS, config.max_position_embeddings)
        self.ids = torch.randint(config.vocab_size, (1, tokens), generator=generator)
        self._config = config
        self._rotary = Rope(config).cos_sin(torch.arange(tokens).unsqueeze(0))
        self._x = self._tied = torch.empty(0)
        self._layer = _build_layer(config)
        self._left = self._expected = len(list(self._layer.parameters()))
        self._logits: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """(T, V) float32."""
        if self._logits is None:
            raise RuntimeError("not every weight was fed")
        return self._logits

    @torch.inference_mode()
    def feed(self, name: str, stored: Stored) -> None:
        """The next weight; biases and norms are tensors, linears may be quantized."""
        if name == "model.embed_tokens.weight":
            table = stored.dequantize() if isinstance(stored, QuantizedLinear) else stored
            self._x = F.embedding(self.ids, table).float()
            if self._config.tie_word_embeddings:
                self._tied = table
        elif name.startswith("model.layers."):
            self._fill(name.split(".", 3)[3], stored)
        elif name == "model.norm.weight":
            norm = RMSNorm(self._config.hidden_size, self._config.rms_norm_eps)
            norm.weight = _parameter(stored)
            self._x = norm(self._x)
            if self._config.tie_word_embeddings:
                self._logits = _multiply_head(self._x, self._tied)
        else:
            self._logits = _multiply_head(self._x, stored)

    def _fill(self, name: str, stored: Stored) -> None:
        module_name, _, attribute = name.rpartition(".")
        module = self._layer.get_submodule(module_name)
        if attribute == "weight" and name.endswith("proj.weight"):
            parent, _, child = module_name.rpartition(".")
            setattr(self._layer.get_submodule(parent), child, _Linear(stored))
        else:
            setattr(module, attribute, _parameter(stored))
        self._left -= 1
        if self._left == 0:
            self._x = self._layer(self._x, self._rotary, None, None)
            self._layer, self._left = _build_layer(self._config), self._expected


@dataclass(frozen=True)
class Difference:
    """How far two models' logits (T, V) lie apart."""

    largest: float  # of all differences, relative to the largest logit
    relative: float  # root of mean squares, but for what moves all logits of a position, relative to the first's spread
    divergence: float  # mean KL(first || second), in nats
    agreement: float  # share of positions with the same best token


def compare_logits(first: Tensor, second: Tensor) -> Difference:
    """Both (T, V) float32, of the same ids."""
    delta = second - first
    moved = delta - delta.mean(dim=-1, keepdim=True)  # softmax does not see what is added to every logit
    spread = (first - first.mean(dim=-1, keepdim=True)).pow(2).mean().sqrt()
    log_p, log_q = first.log_softmax(dim=-1), second.log_softmax(dim=-1)
    return Difference(
        largest=float(delta.abs().max() / first.abs().max().clamp(min=1e-30)),
        relative=float(moved.pow(2).mean().sqrt() / spread.clamp(min=1e-30)),
        divergence=max(float((log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()), 0.0),
        agreement=float((first.argmax(dim=-1) == second.argmax(dim=-1)).float().mean()),
    )


def check_written(written: Tensor, reopened: Tensor, where: str) -> None:
    """Refuses a write whose file does not say what was put into it."""
    difference = compare_logits(written, reopened)
    if not difference.largest <= 1e-5:
        raise ChuanError(
            f"{where} was not written: re-opened, its logits differ from those that were meant by "
            f"{difference.largest:.1e} of the largest; nothing is left of it, check the disk and try again"
        )


class _Linear(nn.Module):
    """A linear in whatever form, computed in float32; a bias may be set later."""

    def __init__(self, stored: Stored) -> None:
        super().__init__()
        self.stored = stored
        self.bias: nn.Parameter | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.stored(x) if isinstance(self.stored, QuantizedLinear) else F.linear(x, self.stored.float())
        return y if self.bias is None else y + self.bias


def _build_layer(config: ModelConfig) -> DecoderLayer:
    with torch.device("meta"):
        return DecoderLayer(config, 0)


def _multiply_head(x: Tensor, head: Stored) -> Tensor:
    weight = head.dequantize() if isinstance(head, QuantizedLinear) else head
    starts = range(0, weight.shape[0], _ROWS)
    return torch.cat([F.linear(x[0], weight[start : start + _ROWS].float()) for start in starts], dim=-1)


def _parameter(stored: Stored) -> nn.Parameter:
    assert isinstance(stored, Tensor)
    return nn.Parameter(stored.float(), requires_grad=False)
