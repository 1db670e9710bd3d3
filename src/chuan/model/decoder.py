"""The whole network, in reading order: a Llama-family decoder in plain PyTorch.

In: token ids. Out: logits. Parameter names are Hugging Face's, so that a checkpoint of the family loads as it is.
Knows no files, no tokenizer, no devices: quantization, adapters and parallelism are applied to a finished model from
outside. Letters: B batch, T time, W width, H query heads, K key/value heads, D width of a head, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chuan.model.attention import attend, build_mask
from chuan.model.config import ModelConfig
from chuan.model.kv_cache import Cache
from chuan.model.rope import Rope, apply_rotary


class RMSNorm(nn.Module):
    """Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467, equation 4; computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        scale = torch.rsqrt(x32.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * (x32 * scale).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023, https://arxiv.org/abs/2305.13245) with rotary positions."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=config.attention_bias)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache | None) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (
            projection(x).view(batch, tokens, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = apply_rotary(q, *rotary), apply_rotary(k, *rotary)
        out = attend(q, k, v, mask) if cache is None else cache.attend(self.layer, q, k, v, mask)
        return self.o_proj(out.transpose(1, 2).reshape(batch, tokens, -1))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, https://arxiv.org/abs/2002.05202, equation 6)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Backbone(nn.Module):
    """Everything below the head; its own module because the checkpoints' names begin with `model.`"""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # Uniform, of the usual deviation 0.02: a normal start, on a meta device, would import torch's compiler.
        table = torch.empty(config.vocab_size, config.hidden_size).uniform_(-0.0346, 0.0346)
        self.embed_tokens = nn.Embedding.from_pretrained(table, freeze=False)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Decoder(nn.Module):
    """The language model: ids in, logits out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.rope = Rope(config)
        self.tie_head()

    def tie_head(self) -> None:
        """Makes the head share the embedding, where the configuration says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        token_ids: Tensor,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
    ) -> Tensor:
        """(B, T) ids -> (B, T, V) logits, or only the last `logits_to_keep` of T, or those at a tensor's indices.

        `cache` holds the S tokens before these and takes these in. `attention_mask` is (B, S + T), True (or 1) where a
        token is real: pass it when a batch is padded, on the left. `positions` (B, T) default to counting real tokens.
        """
        x = self.hidden_states(token_ids, cache, attention_mask, positions)
        kept = logits_to_keep if isinstance(logits_to_keep, Tensor) else slice(-logits_to_keep, None)
        return self.lm_head(self.model.norm(x[:, kept]))

    def hidden_states(
        self,
        token_ids: Tensor,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """(B, T) ids -> (B, T, W): what the last layer hands to the final norm. Arguments as for `forward`."""
        batch, tokens = token_ids.shape
        past = cache.length if cache is not None else 0
        mask = None
        if attention_mask is not None:
            valid = attention_mask.bool()
            mask = build_mask(valid, tokens, past)
            if positions is None:
                positions = (valid.long().cumsum(dim=1) - 1).clamp(min=0)[:, past : past + tokens]
        if positions is None:
            positions = torch.arange(past, past + tokens, device=token_ids.device).expand(batch, tokens)
        rotary = self.rope.cos_sin(positions)
        x = self.model.embed_tokens(token_ids)
        for layer in self.model.layers:
            x = layer(x, rotary, mask, cache)
        if cache is not None:
            cache.advance(tokens)
        return x
