"""A model with an adapter's change added to its weights, or taken from them.

In: a checkpoint, and what an adapter adds to each layer. Out: a source of weights in floats, one at a time.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from chuan.checkpoints.adapter import Pair
from chuan.checkpoints.checkpoint import Checkpoint, CheckpointSource
from chuan.checkpoints.layouts import list_weights
from chuan.errors import ChuanError
from chuan.quantization.linear import QuantizedLinear
from chuan.quantization.methods import Stored, dequantize


class MergedSource:
    """A `WeightSource`: the checkpoint's weights at `bits` as floats, plus `sign` times the changes.

    The sums are float32; what is written is of the checkpoint's type.
    """

    def __init__(
        self, checkpoint: Checkpoint, changes: Mapping[str, Pair], bits: int | None = None, sign: int = 1
    ) -> None:
        """Raises ChuanError where the changes are not for this model."""
        self.config = checkpoint.config
        self._source = CheckpointSource(checkpoint, bits)
        self._changes, self._sign = changes, sign
        shapes = list_weights(self.config)
        for name, pair in changes.items():
            found, expected = (pair.b.shape[0], pair.a.shape[1]), shapes.get(f"{name}.weight")
            if found != expected:
                there = f"is {expected[0]} x {expected[1]}" if expected else "is not there"
                raise ChuanError(
                    f"the adapter changes {name} by {found[0]} x {found[1]}, which in {checkpoint.path} {there}; name "
                    "the model that it was trained on as --base"
                )

    @property
    def dtype(self) -> torch.dtype:
        return self._source.dtype

    @property
    def stored_bits(self) -> int:
        return 16

    def read(self, name: str) -> Tensor:
        """The weight that is meant, changed where the adapter changes it."""
        stored = self._source.fit(name, self._source.read(name))
        weight = dequantize(stored) if isinstance(stored, QuantizedLinear) else stored
        pair = self._changes.get(name.removesuffix(".weight"))
        if pair is None:
            return weight
        return weight.float() + self._sign * pair.multiply().float()

    def fit(self, name: str, stored: Stored) -> Stored:
        assert isinstance(stored, Tensor)
        return stored if stored.dim() == 1 else stored.to(self.dtype)
