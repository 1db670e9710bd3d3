"""Many requests over one model: `step()` is schedule, run, collect.

In: requests, at any time. Out: what they make of their logits. Knows no chat format and no files. Others may add and
cancel while one thread steps; the engine has no thread of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import torch

from chuan.errors import ChuanError
from chuan.inference.generation import Increment, check_ids, fit_length
from chuan.inference.pages import PAGE
from chuan.inference.request import Generation, Request, Scoring
from chuan.inference.runner import Runner
from chuan.inference.sampling import Sampler, SamplingOptions
from chuan.inference.scheduler import Scheduler
from chuan.inference.speculation import PromptLookup
from chuan.tokenizer.streaming import StopStrings
from chuan.tokenizer.tokenizer import Tokenizer


class Engine:
    """Requests join and leave between steps. With `speculate`, answers are drafted by prompt lookup where it pays."""

    def __init__(self, runner: Runner, tokenizer: Tokenizer, speculate: bool = True) -> None:
        self.runner = runner
        self.tokenizer = tokenizer
        # Dynamic RoPE's angles depend on how many tokens there are, drafts included: they would change the answer.
        self.speculate = speculate and not runner.config.has_dynamic_rope
        self._scheduler = Scheduler(runner.page_count, runner.chunk)
        self._stepping = threading.Lock()
        self._arriving = threading.Lock()
        self._added: list[Request] = []
        self._cancelled: list[Request] = []

    @property
    def context_length(self) -> int:
        """How many tokens a request can have: the model's context, or less where memory is short."""
        return min(self.runner.config.context_length, self.runner.page_count * PAGE)

    def build_generation(
        self, prompt_ids: Sequence[int], options: SamplingOptions, stop_ids: frozenset[int]
    ) -> Generation:
        """A request for an answer. Raises PromptTooLongError where it does not fit."""
        vocab_size = self.runner.config.vocab_size
        check_ids(prompt_ids, vocab_size)
        return Generation(
            prompt_ids,
            fit_length(len(prompt_ids), options.max_new_tokens, self.context_length),
            Sampler(options, prompt_ids, vocab_size, torch.device("cpu")),
            self.tokenizer.stream(),
            StopStrings(options.stop),
            stop_ids,
            PromptLookup() if self.speculate else None,
        )

    def build_scoring(self, prompt_ids: Sequence[int], keep: int) -> Scoring:
        """A request for the logits of the last `keep` tokens of a prompt."""
        check_ids(prompt_ids, self.runner.config.vocab_size)
        if not 0 < keep <= len(prompt_ids):
            raise ValueError(f"keep must be 1 to {len(prompt_ids)}, not {keep}")
        if len(prompt_ids) > self.context_length:
            raise ChuanError(f"{len(prompt_ids)} tokens do not fit a context of {self.context_length}")
        return Scoring(prompt_ids, keep)

    def add(self, request: Request) -> None:
        """Takes a request in at the next step. Raises ChuanError where it can never fit."""
        self._scheduler.check(request)
        with self._arriving:
            self._added.append(request)

    def cancel(self, request: Request) -> None:
        """Ends a request at the next step; one that is finished stays as it is."""
        if not request.finished:
            with self._arriving:
                self._cancelled.append(request)

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._added or self._cancelled or self._scheduler.waiting or self._scheduler.running)

    def step(self) -> list[Request]:
        """One pass of the model. Returns the requests for which something came, or which are finished."""
        with self._stepping:
            return self._step()

    def stream(self, request: Generation) -> Iterator[Increment]:
        """Adds a request and steps until it is finished; leaving the iterator early cancels it."""
        self.add(request)
        try:
            while True:
                while request.increments:
                    yield request.increments.popleft()
                if request.error is not None:
                    raise request.error
                if request.finished:
                    return
                with self._stepping:
                    if not request.increments and not request.finished:  # else another thread's step has done it
                        self._step()
        finally:
            self.cancel(request)

    def complete(self, requests: Sequence[Request]) -> None:
        """Adds requests and steps until all are finished. Raises the first error of any; then the rest is cancelled."""
        try:
            for request in requests:
                self.add(request)
            for request in requests:
                while not request.finished:
                    with self._stepping:
                        if not request.finished:
                            self._step()
                if request.error is not None:
                    raise request.error
        finally:
            for request in requests:
                self.cancel(request)

    def _step(self) -> list[Request]:
        settled = False
        try:
            changed = self._take_in()
            work = self._scheduler.schedule()
            for source, target in self._scheduler.copies:
                self.runner.copy_page(source, target)
            pieces = [item.build_piece() for item in work]
            settled = True  # whatever breaks off the run, nothing has been promised yet: the same step can come again
            if not pieces:
                return changed
            logits = self.runner.run(pieces)
            settled = False
            row = 0
            for item in work:
                request, accepted = item.request, 0
                if item.keep:
                    changed.append(request)
                    position = request.computed + item.tokens - item.keep
                    try:
                        accepted = request.receive(logits[row : row + item.keep], position, item.drafts)
                    except Exception as error:  # one request's trouble is not the others'
                        request.error = error
                    row += item.keep
                if request.error is None:
                    self._scheduler.advance(item, accepted)
                if request.finished:
                    self._scheduler.remove(request)
            settled = True
            return changed
        finally:
            if not settled:
                self._scheduler.reset()

    def _take_in(self) -> list[Request]:
        with self._arriving:
            added, self._added = self._added, []
            cancelled, self._cancelled = self._cancelled, []
        for request in added:
            self._scheduler.add(request)
        gone: list[Request] = []
        for request in cancelled:
            if not request.finished:
                request.cancel()
                self._scheduler.remove(request)
                gone.append(request)
        return gone
