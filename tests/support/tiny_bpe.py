"""A tiny byte-level BPE with ChatML tokens, trained with the tokenizers library."""

from __future__ import annotations

import json
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from tests.support.texts import generate_texts

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def train_tiny_bpe(vocab_size: int = 600) -> dict[str, Any]:
    """The parsed `tokenizer.json`; `<think>` is an added token that is not special."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["system user assistant you are a helpful river", *generate_texts(300, 9)], trainer)
    tokenizer.add_tokens(["<think>"])
    parsed: dict[str, Any] = json.loads(tokenizer.to_str())
    return parsed
