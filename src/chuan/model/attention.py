"""Attention: one place for kernels to go, and the masks that they take.

Letters: B batch, H query heads, K key/value heads, T new tokens, S all tokens (S >= T), D width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention, (B, H, T, D) by (B, K, S, D) -> (B, H, T, D).

    `mask` is boolean, (B, 1, T, S), True where a query may look; None means causal without padding.
    """
    tokens, seen = queries.shape[2], keys.shape[2]
    grouped = queries.shape[1] != keys.shape[1]
    if mask is not None or tokens == 1:
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=grouped)
    if tokens == seen:
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=grouped)
    mask = torch.ones(tokens, seen, dtype=torch.bool, device=queries.device).tril(seen - tokens)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=grouped)


def attend_weighed(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `attend`, with the logarithm (B, H, T) of what the softmax divided by, so that parts can be joined; CPU only.

    `mask` is what is added to the scores, (T, S); None means that every query looks at every key.
    """
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(queries, keys, values, attn_mask=mask)


def join_parts(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """What attention to both parts' keys at once would give: each part weighs what its softmax divided by."""
    (first_out, first_log), (second_out, second_log) = first, second
    share = torch.sigmoid(first_log - second_log)[..., None]
    return torch.lerp(second_out, first_out, share.to(first_out.dtype))


def build_mask(valid: Tensor, tokens: int, past: int) -> Tensor:
    """(B, S) True where a token is real -> (B, 1, T, S) for the `tokens` queries that follow `past` tokens.

    The mask stays boolean: a float minimum in half precision becomes -inf and rows of it NaN. A query with nothing to
    look at (padding) looks at everything instead; its output is finite and nobody reads it.
    """
    seen = valid.shape[1]
    query_index = past + torch.arange(tokens, device=valid.device)
    causal = torch.arange(seen, device=valid.device)[None, :] <= query_index[:, None]
    mask = causal[None, None] & valid[:, None, None, :]
    return mask | ~mask.any(dim=-1, keepdim=True)
