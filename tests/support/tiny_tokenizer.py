"""A tiny tokenizer of Baichuan's kind, trained when a test asks for it."""

from __future__ import annotations

import functools
import io
import random

import sentencepiece

ENGLISH = "the river runs to sea and you are what is your name hello world test aa aaa aba abab"
CHINESE = "解释 一下 温故而知新 登鹳雀楼 王之涣 夜雨寄北 百川 你好 中国 人工智能 的 是 不 在 有"
WORDS = f"{ENGLISH} {CHINESE}".split()
RESERVED = 230


@functools.cache
def train_tiny_sentencepiece(seed: int = 0, dummy_prefix: bool = True, **options: object) -> bytes:
    """A BPE `tokenizer.model` of 900 pieces: byte fallback, digits split, `<reserved_N>` around ids 195 and 196."""
    rng = random.Random(seed)
    gaps = ["", " ", "  ", "\t", "，", "。", "    "]
    texts = ["".join(rng.choice(WORDS) + rng.choice(gaps) for _ in range(12)) for _ in range(1200)]
    texts += ["".join(rng.choice("0123456789ab ") for _ in range(20)) for _ in range(100)]
    settings: dict[str, object] = {
        "vocab_size": 900,
        "model_type": "bpe",
        "byte_fallback": True,
        "split_digits": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": dummy_prefix,
        "allow_whitespace_only_pieces": True,
        "hard_vocab_limit": False,
        "user_defined_symbols": [
            "<SEP>", "\n", "\t", "<b>", "</b>", "<strong>", "!", "|", *(f"<reserved_{i}>" for i in range(RESERVED))
        ],
        "minloglevel": 2,
    }  # fmt: skip
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=out,
        **{key: list(value) if isinstance(value, tuple) else value for key, value in (settings | options).items()},
    )
    return out.getvalue()
