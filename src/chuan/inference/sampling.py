"""From logits to the next token.

In: one row of logits and the options. Out: an id. The order of the steps is transformers': repetition penalty,
temperature, top-k, top-p, min-p. Letter: V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chuan.errors import ChuanError


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen, and when to stop. The defaults are greedy, as transformers' are.

    temperature: 0 is greedy. top_k: 0 is off. top_p, min_p: 1 and 0 are off (min-p: Nguyen et al. 2024,
    https://arxiv.org/abs/2407.01082). repetition_penalty: 1 is off (Keskar et al. 2019,
    https://arxiv.org/abs/1909.05858, section 4.1). seed: None draws a new one. max_new_tokens: None is up to the
    context's end, at most 2,048. stop: strings that end the answer and are not part of it.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("top_k", "seed", "max_new_tokens"):
                optional = field.name != "top_k"
                if not (optional and value is None) and (isinstance(value, bool) or not isinstance(value, int)):
                    raise ChuanError(f"{field.name} must be an integer, not {value!r:.60}")
            elif field.name == "stop":
                if not isinstance(value, tuple) or not all(isinstance(stop, str) and stop for stop in value):
                    raise ChuanError("stop must be non-empty strings")
            elif isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
                raise ChuanError(f"{field.name} must be a number, not {value!r:.60}")
        limits = {
            "temperature": (self.temperature >= 0, "at least 0"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p < 1, "at least 0 and below 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
            "max_new_tokens": (self.max_new_tokens is None or self.max_new_tokens > 0, "at least 1"),
            "seed": (self.seed is None or -(2**63) <= self.seed < 2**64, "a 64-bit integer"),
        }
        for name, (holds, wanted) in limits.items():
            if not holds:
                raise ChuanError(f"{name} must be {wanted}, not {getattr(self, name)!r}")

    def replace(self, **changes: Any) -> SamplingOptions:
        """The same options with some changed; a name that is no option is an error."""
        known = {field.name for field in dataclasses.fields(self)}
        unknown = sorted(changes.keys() - known)
        if unknown:
            raise ChuanError(f"{unknown[0]!r} is no sampling option; there are {', '.join(sorted(known))}")
        if isinstance(changes.get("stop"), str):
            changes["stop"] = (changes["stop"],)
        elif isinstance(changes.get("stop"), list):
            changes["stop"] = tuple(changes["stop"])
        return dataclasses.replace(self, **changes)


def read_sampling_options(generation_config: Mapping[str, Any]) -> SamplingOptions:
    """The defaults in a `generation_config.json`. Without `do_sample` it means greedy, as transformers has it."""
    changes: dict[str, Any] = {}
    for name in ("top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens"):
        if generation_config.get(name) is not None:
            changes[name] = generation_config[name]
    if generation_config.get("do_sample"):
        changes["temperature"] = generation_config.get("temperature") or 1.0
        changes.setdefault("top_k", 50)  # transformers' own default, which a file that samples has in mind
    try:
        return SamplingOptions(**changes)
    except ChuanError as error:
        raise ChuanError(f"generation_config.json: {error}") from None


class Sampler:
    """Chooses tokens one after another; remembers, for the repetition penalty, which ids were seen."""

    def __init__(
        self, options: SamplingOptions, prompt_ids: Iterable[int], vocab_size: int, device: torch.device
    ) -> None:
        self._options = options
        self._generator: torch.Generator | None = None
        if options.temperature > 0:
            # On the CPU, so that a seed means the same answer on every device that computes the same logits.
            self._generator = torch.Generator(device="cpu")
            if options.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(options.seed)
        self._seen: Tensor | None = None
        if options.repetition_penalty != 1:
            self._seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
            self._seen[torch.tensor(list(prompt_ids), dtype=torch.long, device=device)] = True

    def choose(self, logits: Tensor) -> int:
        """(V,) logits -> the next id."""
        logits = logits.float()
        if self._seen is not None:
            penalty = self._options.repetition_penalty
            penalized = torch.where(logits > 0, logits / penalty, logits * penalty)
            logits = torch.where(self._seen, penalized, logits)
        # numpy's argmax is thirty times as fast as torch's. The largest of anything and NaN is NaN.
        token_id = int(logits.cpu().numpy().argmax())
        if math.isnan(logits[token_id]):
            raise ChuanError("the model computes NaN: its files are damaged, or try dtype='float32' (--dtype float32)")
        if self._generator is not None:
            token_id = self._draw(logits - logits[token_id], self._generator)
        if self._seen is not None:
            self._seen[token_id] = True
        return token_id

    def _draw(self, logits: Tensor, generator: torch.Generator) -> int:
        """An id by its probability; the largest of the logits is 0, which keeps all of what follows finite."""
        options = self._options
        logits = logits.cpu() / options.temperature
        ids = torch.arange(len(logits))
        if 0 < options.top_k < len(logits):
            logits, ids = logits.topk(options.top_k)
        if options.top_p < 1:
            logits, order = logits.sort(descending=True, stable=True)
            ids = ids[order]
            probabilities = logits.softmax(dim=-1)
            before = probabilities.cumsum(dim=-1) - probabilities
            kept = before < options.top_p
            logits, ids = logits[kept], ids[kept]
        if options.min_p > 0:
            probabilities = logits.softmax(dim=-1)
            kept = probabilities >= options.min_p * probabilities.max()
            logits, ids = logits[kept], ids[kept]
        chosen = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)
        return int(ids[chosen])
