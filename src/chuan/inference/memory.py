"""What a model needs in memory, from its configuration alone.

In: a `ModelConfig`. Out: bytes.
"""

from __future__ import annotations

from chuan.model.config import ModelConfig


def estimate_weights(config: ModelConfig, bits: int) -> int:
    """Bytes of the weights: at 8 bits the layers' linears are int8 with a float32 scale an output, the rest 16-bit."""
    if bits == 16:
        return 2 * config.parameter_count
    width, ffn = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    linears = config.num_hidden_layers * (width * (2 * queries + 2 * keys) + 3 * width * ffn)
    outputs = config.num_hidden_layers * (queries + 2 * keys + width + 2 * ffn + width)
    return linears + 4 * outputs + 2 * (config.parameter_count - linears)


def estimate_cache(config: ModelConfig, tokens: int) -> int:
    """Bytes of the keys and values of so many tokens, in 16 bits."""
    return 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * tokens
