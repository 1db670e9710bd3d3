"""A shuffle that needs no memory: the order of rows as a pure function of (seed, position).

In: a position. Out: the row that is taken there. Knows no data.
"""

from __future__ import annotations

from hashlib import blake2b

_ROUNDS = 4


def permute(position: int, size: int, key: str) -> int:
    """Where `position` of 0 ... size - 1 goes in the shuffle that `key` names; every place is hit exactly once.

    A Feistel network over the next even number of bits, walked until it lands inside (Black and Rogaway 2002,
    "Ciphers with arbitrary finite domains", section 3): a list of a 1.2 trillion token run's rows would take gigabytes.
    """
    if not 0 <= position < size:
        raise IndexError(f"position {position} of {size}")
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = position >> half, position & mask
        for number in range(_ROUNDS):
            digest = blake2b(f"{key}/{number}/{right}".encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "big") & mask)
        position = left << half | right
        if position < size:
            return position


def locate(number: int, size: int, seed: int) -> tuple[int, int]:
    """The number of a row since the beginning of training -> (which pass over the data, which row of it)."""
    epoch, position = divmod(number, size)
    return epoch, permute(position, size, f"{seed}/{epoch}")
