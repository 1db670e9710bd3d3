"""What the options of `chuan evaluate` mean.

In: texts of the command line. Out: numbers and names. Raises ChuanError for what means nothing.
"""

from __future__ import annotations

import re

from chuan.errors import ChuanError


def read_widths(bits: str | None) -> list[int | None]:
    """`16,8,4` to numbers; None is what the files have."""
    if bits is None:
        return [None]
    if not re.fullmatch(r"(16|8|4)(,(16|8|4))*", bits):
        raise ChuanError(f"--bits {bits} is not known; give 16, 8, 4 or several with commas")
    return list(dict.fromkeys(int(width) for width in bits.split(",")))


def read_prices(prices: str | None) -> tuple[float, float] | None:
    """`2.5,10` to numbers: what a million tokens cost, of prompts and of replies."""
    if prices is None:
        return None
    if not re.fullmatch(r"\d+(\.\d+)?,\d+(\.\d+)?", prices):
        raise ChuanError(f"--prices {prices} is not known; give two numbers with a comma, as 2.5,10")
    first, second = prices.split(",")
    return float(first), float(second)


def name_folder(kind: str, what: str, model: str, bits: int | None, dtype: str | None) -> str:
    """A name that tells runs apart and that every file system takes."""
    parts = [kind, what, model, f"{bits}bit" if bits is not None else "", dtype or ""]
    return "-".join(cleaned for part in parts if (cleaned := re.sub(r"[^\w.-]+", "-", part).strip("-.")))
