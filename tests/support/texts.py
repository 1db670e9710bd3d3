"""Nasty texts, seeded."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

_SPECIAL = list("abeIT ,.!?<>/_|{}0123456789\n\t\r　 ▁的一是不了在人有我川𠮷é\x00\x07\x1b\x7f\u200b\u200d\ufeff\u0301")
_EMOJI = ["😀", "👍🏽", "👩\u200d👩\u200d👧", "🇨🇳", "❤️", "🧑🏿\u200d🚀"]
_RANGES = [(0x20, 0x7E), (0x4E00, 0x9FFF), (0x400, 0x4FF), (0x600, 0x6FF), (0x3040, 0x30FF), (0x1F300, 0x1FAFF)]


def generate_texts(count: int, seed: int, pieces: Sequence[str] = (), control: Sequence[str] = ()) -> Iterator[str]:
    """Mixed scripts, runs of spaces, control characters, emoji, rare characters, pieces of a vocabulary."""
    rng = random.Random(seed)
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(0, 12)):
            kind = rng.random()
            if kind < 0.3:
                parts.append(rng.choice(_SPECIAL) * rng.choice([1, 1, 1, 2, 3, 5, 8]))
            elif kind < 0.4:
                parts.append(rng.choice(_EMOJI))
            elif kind < 0.5:
                parts.append(rng.choice([" ", "  ", "\t", "\n", "a", "0"]) * rng.randint(1, 20))
            elif kind < 0.75 and pieces:
                parts.append(rng.choice(pieces).replace("▁", " "))
            elif kind < 0.85 and control:
                parts.append(rng.choice(control))
            else:
                first, last = rng.choice(_RANGES)
                parts.append("".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 6))))
        yield "".join(parts)
