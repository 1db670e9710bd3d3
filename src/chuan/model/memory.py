"""What a model needs in memory, from its configuration alone.

In: a `ModelConfig`. Out: bytes.
"""

from __future__ import annotations

from chuan.model.config import ModelConfig


def estimate_weights(config: ModelConfig, bits: int) -> int:
    """Bytes of the weights: the layers' linears at `bits` (16, 8, 4), the rest in 16.

    At 8 bits every output has a float32 scale, at 4 every 32 inputs a 16-bit one.
    """
    if bits == 16:
        return 2 * config.parameter_count
    width, ffn = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    linears = config.num_hidden_layers * (width * (2 * queries + 2 * keys) + 3 * width * ffn)
    outputs = config.num_hidden_layers * (queries + 2 * keys + width + 2 * ffn + width)
    small = linears + 4 * outputs if bits == 8 else linears // 2 + 2 * linears // 32
    return small + 2 * (config.parameter_count - linears)


def estimate_cache(config: ModelConfig, tokens: int, element_size: int = 2) -> int:
    """Bytes of the keys and values of so many tokens, in 16 bits or in elements of so many bytes."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * tokens * element_size
