"""The keys and values of the tokens a model has already seen.

Letters: B batch, H query heads, K key/value heads, S tokens seen so far, T new tokens, D width of a head.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from chuan.errors import ChuanError
from chuan.model.attention import attend
from chuan.model.config import ModelConfig


class Cache(Protocol):
    """What the decoder asks of a cache."""

    length: int

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Stores a layer's new keys and values (B, K, T, D); attends to all so far from the queries (B, H, T, D)."""
        ...

    def advance(self, tokens: int) -> None:
        """Called once every layer has stored its new tokens."""
        ...


class KVCache:
    """Grows by doubling, so that a long stream copies each key a bounded number of times; never beyond `capacity`."""

    FIRST_SIZE = 256

    def __init__(self, config: ModelConfig, batch_size: int = 1, capacity: int | None = None) -> None:
        self.capacity = capacity if capacity is not None else config.context_length
        self.batch_size = batch_size
        self.length = 0
        self._keys: list[Tensor | None] = [None] * config.num_hidden_layers
        self._values: list[Tensor | None] = [None] * config.num_hidden_layers

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        all_keys, all_values = self.update(layer, keys, values)
        return attend(queries, all_keys, all_values, mask)

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores a layer's (B, K, T, D) after the tokens seen; returns all of them, (B, K, S + T, D)."""
        end = self.length + keys.shape[2]
        if end > self.capacity:
            raise ChuanError(f"{end} tokens do not fit a context of {self.capacity}; shorten the prompt")
        all_keys = self._keys[layer] = self._room(self._keys[layer], keys, end)
        all_values = self._values[layer] = self._room(self._values[layer], values, end)
        all_keys[:, :, self.length : end] = keys
        all_values[:, :, self.length : end] = values
        return all_keys[:, :, :end], all_values[:, :, :end]

    def advance(self, tokens: int) -> None:
        self.length += tokens

    def truncate(self, length: int) -> None:
        """Forgets every token after the first `length`; their memory is used again."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a cache of {self.length} tokens to {length}")
        self.length = length

    def _room(self, old: Tensor | None, like: Tensor, end: int) -> Tensor:
        if old is not None and old.shape[2] >= end:
            return old
        size = self.FIRST_SIZE if old is None else 2 * old.shape[2]
        size = min(max(size, end), self.capacity)
        new = torch.empty(like.shape[0], like.shape[1], size, like.shape[3], dtype=like.dtype, device=like.device)
        if old is not None:
            new[:, :, : self.length] = old[:, :, : self.length]
        return new
