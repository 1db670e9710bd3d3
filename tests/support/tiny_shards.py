"""A folder of token shards, and a tokenizer that they are of."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from chuan.corpus.shard_format import (
    FORMAT_VERSION,
    INDEX_DTYPE,
    Manifest,
    SplitEntry,
    TokenizerEntry,
    hash_file,
    save_manifest,
    write_shard,
)
from chuan.tokenizer.folder import load_tokenizer
from tests.support.tiny_tokenizer import train_tiny_sentencepiece


def build_tiny_shards(folder: Path, documents: int = 60, seed: int = 0) -> tuple[Path, Path]:
    """Two shards of documents of 5 to 40 tokens that a small model can learn -> (their folder, the tokenizer's)."""
    vocabulary = folder / "tokenizer"
    vocabulary.mkdir(parents=True)
    file = vocabulary / "tokenizer.model"
    file.write_bytes(train_tiny_sentencepiece())
    tokenizer = load_tokenizer(vocabulary)
    assert tokenizer.eos_id is not None
    random = np.random.default_rng(seed)
    shards = folder / "shards"
    shards.mkdir()
    splits = {}
    for split, count in (("train", documents), ("validation", 20)):
        texts = [_document(random, tokenizer.vocab_size, tokenizer.eos_id) for _ in range(count)]
        halves = [texts[: count // 2], texts[count // 2 :]]
        entries = [
            write_shard(shards, split, number, _index(half), half, "uint16")  # type: ignore[arg-type]
            for number, half in enumerate(halves)
        ]
        tokens = sum(map(len, texts))
        splits[split] = SplitEntry(documents=count, tokens=tokens, groups=[], shards=entries)
    entry = TokenizerEntry(
        file="tokenizer.model", sha256=hash_file(file), vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id
    )
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        dtype="uint16",
        tokenizer=entry,
        sources=["made up"],
        languages=["en"],
        splits=splits,  # type: ignore[arg-type]
        mixture={},
        recipe={},
    )
    save_manifest(shards, manifest)
    return shards, vocabulary


def _document(random: np.random.Generator, vocab_size: int, eos: int) -> np.ndarray:
    """Counts up from somewhere, so that the next token can be foreseen."""
    start, length = int(random.integers(10, vocab_size)), int(random.integers(5, 40))
    return np.array([*(10 + (start + i) % (vocab_size - 10) for i in range(length)), eos], np.uint16)


def _index(documents: list[np.ndarray]) -> np.ndarray:
    index = np.zeros(len(documents), INDEX_DTYPE)
    index["end"] = np.cumsum([len(document) for document in documents])
    index["hash"] = np.arange(len(documents))
    return index
