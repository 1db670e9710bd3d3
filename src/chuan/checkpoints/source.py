"""Where the weights of a write come from, and the check that follows them to the disk and back.

In: a decoder in memory, or a checkpoint on disk. Out: weights in reading order; the logits of a probe for what was
read, for what was meant to be written, and for what comes back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from chuan.checkpoints.checkpoint import Checkpoint, CheckpointSource, Progress
from chuan.checkpoints.layouts import list_weights
from chuan.checkpoints.probe import Difference, Probe, check_written, compare_logits
from chuan.errors import ChuanError
from chuan.model.config import ModelConfig
from chuan.model.decoder import Decoder
from chuan.quantization.integer import IntegerLinear
from chuan.quantization.linear import QuantizedLinear
from chuan.quantization.methods import Stored, find_bits


class WeightSource(Protocol):
    """The decoder's weights, by the names of `list_weights`."""

    config: ModelConfig

    @property
    def dtype(self) -> torch.dtype:
        """The floats' type."""
        ...

    @property
    def stored_bits(self) -> int:
        """The fewest bits that a weight will have."""
        ...

    def read(self, name: str) -> Stored:
        """The weight as it is."""
        ...

    def fit(self, name: str, stored: Stored) -> Stored:
        """The weight as it is to be written."""
        ...


class DecoderSource:
    """A decoder in memory, in the precision that it has."""

    def __init__(self, decoder: Decoder) -> None:
        self.config = decoder.config
        self._decoder = decoder

    @property
    def dtype(self) -> torch.dtype:
        return self._decoder.model.embed_tokens.weight.dtype

    @property
    def stored_bits(self) -> int:
        return find_bits(self._decoder)

    def read(self, name: str) -> Stored:
        module_name, _, attribute = name.rpartition(".")
        module = self._decoder.get_submodule(module_name)
        if isinstance(module, IntegerLinear) and attribute == "weight":
            return self._widen(module) if name == "lm_head.weight" else module.unpack()
        if isinstance(module, QuantizedLinear) and attribute == "weight":
            return module.take_rows(slice(None)).cpu()  # without its bias, which has a name of its own
        tensor: Tensor = getattr(module, attribute)
        return tensor.detach().cpu()

    def fit(self, name: str, stored: Stored) -> Stored:
        return stored

    def _widen(self, head: IntegerLinear) -> Tensor:
        """Files have the head in 16 bits, as every engine expects; read again, it rounds to the same integers."""
        widened = torch.empty(head.out_features, head.in_features, dtype=self.dtype)
        for start in range(0, head.out_features, 4096):
            rows = slice(start, start + 4096)
            widened[rows] = head.dequantize(rows).to(self.dtype)
        return widened


class Check:
    """Follows a write: feed it every weight in order, then the file again."""

    def __init__(self, config: ModelConfig, steps: int, progress: Progress | None) -> None:
        self._source, self._written = Probe(config), Probe(config)
        self._lossless = True
        self._steps, self._done, self._progress = steps, 0, progress

    def pass_on(self, source: WeightSource, name: str) -> Stored:
        """Reads a weight, notes what it means, and returns what is to be written."""
        stored = self.read(source, name)
        fitted = source.fit(name, stored)
        self.note_written(name, fitted, lossless=_is_same(stored, fitted))
        return fitted

    def read(self, source: WeightSource, name: str) -> Stored:
        """Reads a weight and notes what it means; `note_written` must follow."""
        stored = source.read(name)
        self._source.feed(name, stored)
        return stored

    def note_written(self, name: str, written: Stored, lossless: bool) -> None:
        """What the file will mean for this weight."""
        self._lossless = self._lossless and lossless
        self._written.feed(name, written)
        self._step()

    def reopen(self, checkpoint: Checkpoint, target: Path) -> Difference:
        """Reads the file back and compares; returns how far what was written lies from what was read."""
        source, probe = CheckpointSource(checkpoint), Probe(checkpoint.config)
        for name in list_weights(checkpoint.config):
            probe.feed(name, source.read(name))
            self._step()
        if not torch.isfinite(self._source.logits).all():
            raise ChuanError("the source answers with NaN or infinity; it is damaged, fetch it again")
        check_written(self._written.logits, probe.logits, str(target))
        difference = compare_logits(self._source.logits, self._written.logits)
        # How far rounding may go nobody can say; that it is rounding and no mistake, the comparison above has shown.
        if self._lossless and not difference.relative <= 1e-4:
            raise ChuanError(
                f"{target} was not written: nothing was rounded, but its logits lie {difference.relative:.2g} of their "
                "spread from the source's; nothing is left of it"
            )
        return difference

    def _step(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._steps)


def describe_check(difference: Difference) -> str:
    """One line for a card."""
    if difference.largest == 0:
        return "re-opened; logits of a probe equal the source's, bit for bit"
    return (
        f"re-opened; logits of a probe against the source's: KL {difference.divergence:.2e} nats, difference "
        f"{difference.relative:.1e} of their spread, same best token at {difference.agreement:.0%} of positions"
    )


def _is_same(stored: Stored, fitted: Stored) -> bool:
    if isinstance(stored, Tensor) and isinstance(fitted, Tensor):
        return stored is fitted or stored.dtype == fitted.dtype or torch.equal(stored, fitted.to(stored.dtype))
    return stored is fitted
