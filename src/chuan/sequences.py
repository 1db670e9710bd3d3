"""What several parts ask of sequences of ids."""

from __future__ import annotations

from collections.abc import Sequence


def count_common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many items the two begin with in common."""
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return min(len(left), len(right))
