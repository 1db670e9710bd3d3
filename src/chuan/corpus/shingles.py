"""Texts as sequences of hashed tokens, and the hashes of every run of n of them.

In: a text. Out: arrays of uint64 that depend on nothing but the text. A token is one character of Chinese, a run of
digits, or a run of other letters in lower case; blanks and punctuation are none. So a shingle of n tokens is n
characters in Chinese and n words in English, and a page of both needs no choice. Knows nothing of what the hashes are
for.

Legend: N tokens, n tokens of a shingle.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ebef"
_TOKEN = re.compile(rf"[{HAN}]|\d+|[^\W\d_{HAN}]+")
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 1 << 64)
_MIX = np.uint64(0xD6E8FEB86659FD93)
_CACHED = 1 << 18  # tokens whose hashes are remembered; Chinese and the common words of English


def split_tokens(text: str) -> list[str]:
    """The tokens of a text, in order."""
    return _TOKEN.findall(text.lower())


class TokenHasher(dict[str, int]):
    """Hashes tokens to 64 bits; common ones are looked up."""

    def __missing__(self, token: str) -> int:
        value = xxhash.xxh3_64_intdigest(token.encode("utf-8", "surrogatepass"))
        if len(self) < _CACHED:
            self[token] = value
        return value

    def hash(self, tokens: Sequence[str]) -> Hashes:
        """(N,)"""
        return np.fromiter(map(self.__getitem__, tokens), np.uint64, len(tokens))


class ShingleHasher:
    """Hashes every run of n tokens at once: differences of a prefix sum of a polynomial modulo 2^64, then mixed."""

    def __init__(self) -> None:
        self._powers = self._inverses = np.ones(1, np.uint64)

    def sum_prefixes(self, tokens: Hashes) -> Hashes:
        """(N,) -> (N + 1,), what `hash` takes for every n."""
        if len(tokens) + 1 > len(self._powers):
            size = 2 * (len(tokens) + 1)
            self._powers, self._inverses = (_build_powers(base, size) for base in (_BASE, _INVERSE))
        prefixes = np.zeros(len(tokens) + 1, np.uint64)
        np.cumsum(tokens * self._powers[: len(tokens)], out=prefixes[1:])
        return prefixes

    def hash(self, prefixes: Hashes, n: int) -> Hashes:
        """(N + 1,) -> (N - n + 1,), empty where there are fewer than n tokens."""
        return self._mix(prefixes[n:] - prefixes[:-n], slice(0, max(0, len(prefixes) - n)))

    def hash_runs(self, prefixes: Hashes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> Hashes:
        """The hashes of the runs from `starts` to before `ends`: equal to those of `hash` where the tokens are."""
        return self._mix(prefixes[ends] - prefixes[starts], starts)

    def _mix(self, hashes: Hashes, starts: slice | NDArray[np.int64]) -> Hashes:
        hashes *= self._inverses[starts]
        hashes ^= hashes >> np.uint64(32)
        hashes *= _MIX
        hashes ^= hashes >> np.uint64(29)
        return hashes


def _build_powers(base: int, size: int) -> Hashes:
    factors = np.full(size, base, np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)
