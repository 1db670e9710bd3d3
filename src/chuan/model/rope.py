"""Rotary position embeddings (Su et al. 2021, https://arxiv.org/abs/2104.09864) and their long-context scalings.

In: positions. Out: cosines and sines in float32. Follows transformers' `modeling_rope_utils`.
Letters: B batch, T time, D width of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from chuan.model.config import ModelConfig, RopeScaling


class Rope:
    """The rotary table of a model. Not a module: its frequencies are not weights and never leave float32."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.inv_freq, self.attention_factor = build_frequencies(config)

    def cos_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) positions -> cosines and sines, each (B, 1, T, D) float32; both halves of D carry the same angles."""
        inv_freq = self.inv_freq
        scaling = self.config.rope_scaling
        if scaling is not None and scaling.rope_type == "dynamic":
            inv_freq = _dynamic_frequencies(self.config, scaling, int(positions.max()) + 1)
        if inv_freq.device != positions.device:
            inv_freq = inv_freq.to(positions.device)
            if scaling is None or scaling.rope_type != "dynamic":
                self.inv_freq = inv_freq
        angles = positions[:, None, :, None].float() * inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos() * self.attention_factor, angles.sin() * self.attention_factor


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates (B, heads, T, D) by (B, 1, T, D) angles in float32 (as Baichuan 2 does), and returns x's own dtype."""
    x32 = x.float()
    left, right = x32.chunk(2, dim=-1)
    return (x32 * cos + torch.cat((-right, left), dim=-1) * sin).to(x.dtype)


def build_frequencies(config: ModelConfig) -> tuple[Tensor, float]:
    """Inverse frequencies (D/2,) in float32, and the factor on cosines and sines (1 but for YaRN)."""
    inv_freq = _plain_frequencies(config.rope_theta, config.head_dim)
    scaling = config.rope_scaling
    if scaling is None or scaling.rope_type == "dynamic":
        return inv_freq, 1.0
    if scaling.rope_type == "linear":
        return inv_freq / scaling.factor, 1.0
    if scaling.rope_type == "llama3":
        return _llama3_frequencies(inv_freq, scaling), 1.0
    return _yarn_frequencies(inv_freq, config, scaling)


def _plain_frequencies(theta: float, head_dim: int) -> Tensor:
    # On the CPU whatever the ambient device is: a model is built on "meta" before its weights are read.
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    return 1.0 / (theta**exponents)


def _dynamic_frequencies(config: ModelConfig, scaling: RopeScaling, length: int) -> Tensor:
    """NTK-aware scaling that grows with the sequence: a pure function of how many tokens there are so far."""
    limit = scaling.original_max_position_embeddings or config.max_position_embeddings
    length = max(length, limit)
    stretch = scaling.factor * length / limit - (scaling.factor - 1)
    theta = config.rope_theta * stretch ** (config.head_dim / (config.head_dim - 2))
    return _plain_frequencies(theta, config.head_dim)


def _llama3_frequencies(inv_freq: Tensor, scaling: RopeScaling) -> Tensor:
    """Long waves are slowed by `factor`, short ones kept, those between interpolated (the Llama 3.1 report)."""
    low, high = scaling.low_freq_factor or 1.0, scaling.high_freq_factor or 4.0
    original = scaling.original_max_position_embeddings or 8192
    wavelengths = 2 * math.pi / inv_freq
    kept = ((original / wavelengths - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * inv_freq / scaling.factor + kept * inv_freq


def _yarn_frequencies(inv_freq: Tensor, config: ModelConfig, scaling: RopeScaling) -> tuple[Tensor, float]:
    """YaRN (Peng et al. 2023, https://arxiv.org/abs/2309.00071), equations 17 to 23."""
    original = scaling.original_max_position_embeddings or config.max_position_embeddings
    size, theta = config.head_dim, config.rope_theta

    def dimension_of(rotations: float) -> float:
        return size * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension_of(scaling.beta_fast or 32), dimension_of(scaling.beta_slow or 1)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    if low == high:
        high += 0.001  # no division by zero
    slowed = ((torch.arange(size // 2, dtype=torch.float32, device="cpu") - low) / (high - low)).clamp(0, 1)

    def magnitude(mscale: float) -> float:
        return 0.1 * mscale * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0

    attention_factor = scaling.attention_factor
    if attention_factor is None:
        if scaling.mscale and scaling.mscale_all_dim:
            attention_factor = magnitude(scaling.mscale) / magnitude(scaling.mscale_all_dim)
        else:
            attention_factor = magnitude(1.0)
    return slowed * inv_freq / scaling.factor + (1 - slowed) * inv_freq, attention_factor
