"""One prompt on its way through the engine: what was asked, how far it is, what came out.

In: rows of logits. Out: `Increment`s of whole characters (`Generation`), or the rows themselves (`Scoring`). Knows
neither the model nor other requests; pages are the scheduler's to give and to take. Letters: N rows, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from chuan.inference.generation import FinishReason, Increment
from chuan.inference.sampling import Sampler
from chuan.inference.speculation import PromptLookup
from chuan.tokenizer.streaming import StopStrings, StreamingDecoder


class Request(ABC):
    """What the scheduler and the engine see of any request.

    token_ids: the prompt and what has come since. keep: of how many of the last prompt tokens the logits are wanted.
    computed: how many tokens' keys and values are on `pages`; `keys` are the digests of the full ones.
    """

    def __init__(self, prompt_ids: Sequence[int], keep: int, longest: int) -> None:
        self.token_ids = list(prompt_ids)
        self.prompt_tokens = len(self.token_ids)
        self.keep = keep
        self.longest = longest  # tokens, when it is finished
        self.finish_reason: FinishReason | None = None
        self.error: Exception | None = None
        self.arrival = 0
        self.computed = 0
        self.pages: list[int] = []
        self.keys: list[bytes] = []
        self.awaited: bytes | None = None  # a page that another request is about to compute for both
        self._cached_tokens: int | None = None

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to come."""
        return self.finish_reason is not None or self.error is not None

    @property
    def cached_tokens(self) -> int:
        """How many of the prompt's tokens were in the cache when the request began."""
        return self._cached_tokens or 0

    @property
    def completion_tokens(self) -> int:
        """How many tokens have come, one that ends the answer included."""
        return len(self.token_ids) - self.prompt_tokens

    @property
    def completion_ids(self) -> list[int]:
        """The tokens that have come."""
        return self.token_ids[self.prompt_tokens :]

    def begin(self, pages: list[int], cached: int) -> None:
        """It has its pages, and so many tokens are on them already."""
        self.pages, self.computed = pages, cached
        if self._cached_tokens is None:
            self._cached_tokens = cached

    def cancel(self) -> None:
        """Nobody wants the rest."""
        self.finish_reason = "cancelled"

    def propose(self, limit: int) -> list[int]:
        """At most `limit` ids that may come next, to be verified in one step."""
        return []

    @abstractmethod
    def receive(self, logits: Tensor, position: int, drafts: Sequence[int]) -> int:
        """Takes (N, V) logits of the tokens from `position` on, the last of them drafts; how many drafts are right."""


class Generation(Request):
    """An answer. The caller drains `increments`; the last one has the reason."""

    def __init__(
        self,
        prompt_ids: Sequence[int],
        max_new_tokens: int,
        sampler: Sampler,
        text: StreamingDecoder,
        stops: StopStrings,
        stop_ids: Collection[int],
        lookup: PromptLookup | None,
    ) -> None:
        super().__init__(prompt_ids, 1, len(prompt_ids) + max_new_tokens)
        self.increments: deque[Increment] = deque()
        self._sampler = sampler
        self._text = text
        self._stops = stops
        self._stop_ids = stop_ids
        self._lookup = lookup

    @property
    def proposed_tokens(self) -> int:
        """How many tokens were drafted by prompt lookup."""
        return self._lookup.proposed if self._lookup is not None else 0

    @property
    def accepted_tokens(self) -> int:
        """How many of the drafted tokens are in the answer."""
        return self._lookup.accepted if self._lookup is not None else 0

    def cancel(self) -> None:
        super().cancel()
        self._push("")

    def propose(self, limit: int) -> list[int]:
        if self._lookup is None:
            return []
        return self._lookup.propose(self.token_ids, min(limit, self.longest - len(self.token_ids) - 1))

    def receive(self, logits: Tensor, position: int, drafts: Sequence[int]) -> int:
        # Each token is chosen as if there were no drafts, and the next row is right as long as that is the draft. So a
        # draft d is accepted with its probability p(d), else a token comes from p without d: the rule of speculative
        # sampling (Leviathan et al. 2023, https://arxiv.org/abs/2211.17192) for a draft that is certain, and it takes
        # the same random numbers as plain decoding: a seed means the same answer.
        accepted = 0
        for index in range(len(logits)):
            token_id = self._sampler.choose(logits[index])
            self._accept(token_id)
            if index == len(drafts) or token_id != drafts[index]:
                break
            accepted += 1
            if self.finished:
                break
        if drafts and self._lookup is not None:
            self._lookup.record(len(drafts), accepted)
        return accepted

    def _accept(self, token_id: int) -> None:
        self.token_ids.append(token_id)
        if token_id in self._stop_ids:
            out, self.finish_reason = self._stops.push(self._text.flush()), "stop"
        else:
            out = self._stops.push(self._text.push(token_id))
            if self._stops.stopped:
                self.finish_reason = "stop"
            elif len(self.token_ids) == self.longest:
                out += self._stops.push(self._text.flush())
                self.finish_reason = "length"
        if self.finished:
            out += self._stops.flush()
        if out or self.finished:
            self._push(out)

    def _push(self, text: str) -> None:
        counts = self.prompt_tokens, self.cached_tokens, self.completion_tokens
        self.increments.append(Increment(text, *counts, self.finish_reason))


class Scoring(Request):
    """Only the logits of the last `keep` tokens of a prompt, for evaluation; nothing is generated."""

    def __init__(self, prompt_ids: Sequence[int], keep: int) -> None:
        super().__init__(prompt_ids, keep, len(prompt_ids))
        self._logits: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """(keep, V) float32, once finished; a row predicts the token after its own."""
        if self._logits is None or self.finish_reason != "stop":
            raise ValueError("the request is not finished")
        return self._logits

    def receive(self, logits: Tensor, position: int, drafts: Sequence[int]) -> int:
        if self._logits is None:
            self._logits = torch.empty(self.keep, logits.shape[1])
        first = position - (self.prompt_tokens - self.keep)
        self._logits[first : first + len(logits)] = logits
        if first + len(logits) == self.keep:
            self.finish_reason = "stop"
        return 0
