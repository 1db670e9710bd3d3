"""Tiny models of random weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from chuan.model.config import ModelConfig
from chuan.model.decoder import Decoder


def build_tiny_config(**changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "vocab_size": 307,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    }
    return ModelConfig.from_dict(values | changes)


def build_tiny_llama(config: ModelConfig, seed: int = 0) -> tuple[LlamaForCausalLM, Decoder]:
    """transformers' Llama and ours, with the same weights, large enough to make logits differ."""
    torch.manual_seed(seed)
    theirs = LlamaForCausalLM(LlamaConfig(**config.to_dict(), initializer_range=0.2)).eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if name.endswith("norm.weight"):
                weight.uniform_(0.5, 1.5)
    ours = Decoder(config).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def build_tiny_decoder(config: ModelConfig, seed: int = 0) -> Decoder:
    return build_tiny_llama(config, seed)[1]
