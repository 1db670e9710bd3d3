"""What a run is measured by: operations, bits per byte.

In: a configuration, a tokenizer, sums over tokens. Out: numbers. Knows no torch beyond a matrix product's time.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch

from chuan.errors import ChuanError
from chuan.inference.device import DTYPES
from chuan.model.config import ModelConfig
from chuan.tokenizer.tokenizer import Tokenizer


def count_operations(config: ModelConfig, length: int) -> int:
    """Floating-point operations of training on one token: 6 for each weight that multiplies (all but the input
    embedding), and causal attention over rows of `length`; what checkpointing computes again is not counted.

    As Kaplan et al. 2020 (https://arxiv.org/abs/2001.08361, section 2.1), attention as in PaLM (Chowdhery et al. 2022,
    https://arxiv.org/abs/2204.02311, appendix B) with half of it for causality.
    """
    embedding = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    attention = 6 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * length
    return 6 * (config.parameter_count - embedding) + attention


def count_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """(V,) how many bytes of UTF-8 each id stands for; 0 for control tokens."""
    return np.array([len(_encode(piece)) for piece in tokenizer.table.pieces], np.int64)


def _encode(piece: str | bytes | None) -> bytes:
    return piece.encode("utf-8", "surrogatepass") if isinstance(piece, str) else piece or b""


def bits_per_byte(nll: float, size: int) -> float:
    """A sum of -ln p over tokens that stand for `size` bytes: independent of the vocabulary."""
    return nll / math.log(2) / size


def measure_products(dtype: torch.dtype, device: torch.device, size: int = 1024) -> float:
    """Floating-point operations a second of square matrix products of `size`: the best of five.

    A GPU wants larger ones to be filled, several at a time so that waiting for it weighs nothing, and numbers that
    differ: with ones it draws less power and is faster than it ever is in training.
    """
    size, products = (8192, 10) if device.type == "cuda" else (size, 1)
    generator = torch.Generator(device).manual_seed(0)  # training's own numbers stay what they are
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    best = math.inf
    for _ in range(6):  # the first one warms up
        start = time.perf_counter()
        for _ in range(products):
            product = a @ b
        product[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 * products / best


def choose_compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type of what is computed between the layers' products. "auto": bfloat16 on CUDA; on a CPU whichever of
    float32 and bfloat16 this processor multiplies faster.

    Having the instructions is not enough: with AVX512-BF16, one processor was measured at twice float32's rate and
    another at half of it; without, bfloat16 is hundreds of times slower and is not even tried.
    """
    if name != "auto":
        if name not in ("bfloat16", "float32", "float8"):
            raise ChuanError(f"dtype {name!r} is not one to train in; use auto, bfloat16, float32 or float8")
        return torch.bfloat16 if name == "float8" else DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16
    capabilities = torch.cpu.get_capabilities()
    if not (capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")):
        return torch.float32
    rates = {dtype: measure_products(dtype, device) for dtype in (torch.float32, torch.bfloat16)}
    return max(rates, key=lambda dtype: rates[dtype])
