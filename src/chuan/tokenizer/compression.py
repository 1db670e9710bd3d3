"""How few tokens a tokenizer makes of texts.

In: tokenizers, and texts by kind. Out: characters and bytes per token. Knows no files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chuan.tokenizer.tokenizer import Tokenizer

# The first generation's README gives these rates without a unit and without the text they were measured on; smaller is
# better there. So they stand beside our figures and not among them.
PUBLISHED_RATES = {
    "Baichuan-7B": 0.737,
    "LLaMA": 1.312,
    "Falcon": 1.049,
    "MPT-7B": 1.206,
    "ChatGLM": 0.631,
    "moss-moon-003": 0.659,
}
NUMBER = re.compile(r"[0-9][0-9.,:/%-]*[0-9]")


@dataclass(frozen=True)
class Compression:
    """One tokenizer on one kind of text. Bytes are of UTF-8."""

    characters: int
    bytes: int
    tokens: int

    @property
    def characters_per_token(self) -> float:
        return self.characters / max(1, self.tokens)

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / max(1, self.tokens)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "characters": self.characters,
            "bytes": self.bytes,
            "tokens": self.tokens,
            "characters_per_token": round(self.characters_per_token, 4),
            "bytes_per_token": round(self.bytes_per_token, 4),
        }


def measure_compression(
    tokenizer: Tokenizer, texts: Mapping[str, Sequence[str]], threads: int = 1
) -> dict[str, Compression]:
    """By kind of text; a kind without text is left out."""
    measured = {}
    for kind, chunks in texts.items():
        if chunks:
            tokens = sum(map(len, tokenizer.encode_batch(chunks, threads)))
            measured[kind] = Compression(
                sum(map(len, chunks)), sum(len(chunk.encode("utf-8")) for chunk in chunks), tokens
            )
    return measured


def find_numbers(texts: Iterable[str]) -> list[str]:
    """The numbers of two digits and more in texts, with what stands inside of them, a line of them for each text."""
    lines = (" ".join(NUMBER.findall(text)) for text in texts)
    return [line for line in lines if line]
