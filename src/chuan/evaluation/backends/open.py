"""From what the user wrote to what answers.

In: a model's name. Out: a backend.
"""

from __future__ import annotations

from chuan.evaluation.backends.chuan import ChuanBackend
from chuan.inference.load import load


def open_backend(model: str, bits: int | None, device: str, dtype: str) -> ChuanBackend:
    """A model that `chuan.load` opens. Raises ChuanError where nothing does."""
    return ChuanBackend(load(model, bits=bits, device=device, dtype=dtype))  # type: ignore[arg-type]
