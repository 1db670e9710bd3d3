"""Which request runs which of its tokens in the next step, and on which pages.

In: requests that come and go. Out: `Work`, one piece of a request each, and pages to copy before it runs. Knows no
tensors and no text. Requests that generate go first, a token each (and drafts); the rest of a step reads prompts.
"""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass

from chuan.errors import ChuanError
from chuan.inference.pages import PAGE, PagePool, count_pages, extend_keys
from chuan.inference.request import Request
from chuan.inference.runner import Piece

# With as many requests as may run at once, one whole chunk still fits into a step.
MAX_RUNNING = 64
# A step with drafts verifies at most so many tokens: up to there, reading the weights takes longer than computing.
SPECULATION_ROWS = 9


@dataclass(frozen=True)
class Work:
    """The next tokens of a request; the last of them are drafts."""

    request: Request
    tokens: int
    keep: int
    drafts: list[int]

    def build_piece(self) -> Piece:
        """What the runner needs to know of it."""
        request = self.request
        end = request.computed + self.tokens - len(self.drafts)
        token_ids = request.token_ids[request.computed : end] + self.drafts
        return Piece(token_ids, request.computed, request.pages, self.keep)


class Scheduler:
    """Waiting and running requests over `page_count` pages.

    A prompt is cut at multiples of `chunk`, counted from its own beginning, whoever else is there.
    """

    def __init__(self, page_count: int, chunk: int) -> None:
        self.page_count = page_count
        self.chunk = chunk
        self.step_tokens = 2 * chunk  # the most of one step
        self.waiting: list[Request] = []  # both in order of arrival
        self.running: list[Request] = []
        self.copies: list[tuple[int, int]] = []  # pages to copy before the step runs, in this order
        self._pool = PagePool(page_count)
        self._arrivals = itertools.count()
        self._computing: dict[bytes, Request] = {}  # full pages of prompts, and who is about to compute them

    def check(self, request: Request) -> None:
        """A request that cannot fit even alone is refused."""
        if count_pages(request.longest) > self.page_count:
            raise ChuanError(
                f"the request needs memory for {request.longest} tokens, and there is room for "
                f"{self.page_count * PAGE}; shorten the prompt or lower max_new_tokens"
            )

    def add(self, request: Request) -> None:
        """Puts it at the end of the line."""
        request.arrival = next(self._arrivals)
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """A finished or cancelled request leaves; what it computed stays findable."""
        if request in self.running:
            self.running.remove(request)
            self._release(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    def schedule(self) -> list[Work]:
        """The next step; empty only where nobody waits or runs."""
        work: list[Work] = []
        self.copies = []
        generating = [request for request in self.running if request.computed == len(request.token_ids) - 1]
        limit = SPECULATION_ROWS // len(generating) - 1 if generating else 0
        for request in generating:
            if request.pages:  # else it has just made room for an earlier one
                self._generate(request, limit, work)
        budget = self.step_tokens - sum(item.tokens for item in work)
        for request in self.running:
            if request.computed < len(request.token_ids) - 1:
                budget -= self._read(request, budget, work)
        self._admit(budget, work)
        return work

    def advance(self, item: Work, accepted: int) -> None:
        """The step has been run: the request's tokens are in its pages, and of the drafts as many as were accepted."""
        request = item.request
        start = request.computed // PAGE
        request.computed += item.tokens - len(item.drafts) + accepted
        end = request.computed // PAGE
        if end > start:
            extend_keys(request.keys, request.token_ids, request.computed)
            self._pool.publish(request.pages, request.token_ids, request.keys, start, end)
            self._drop_computing(request, start, end)

    def reset(self) -> None:
        """After a step that broke off halfway: whoever was running waits again, and no page holds anything."""
        self._pool = PagePool(self.page_count)
        self._computing.clear()
        for request in self.running:
            request.pages, request.computed = [], 0
        left = [request for request in (*self.running, *self.waiting) if not request.finished]
        self.running, self.waiting = [], sorted(left, key=_arrival)

    def _generate(self, request: Request, limit: int, work: list[Work]) -> None:
        """The token that was chosen last, and drafts where there is memory for them; the latest make room for it."""
        drafts = request.propose(limit) if limit > 0 else []
        if drafts and not self._pool.grow(request.pages, request.computed + 1 + len(drafts)):
            drafts = []
        while not self._pool.grow(request.pages, request.computed + 1):
            latest = self.running.pop()
            self._release(latest)
            bisect.insort(self.waiting, latest, key=_arrival)
            if latest is request:
                return
        work.append(Work(request, 1 + len(drafts), 1 + len(drafts), drafts))

    def _read(self, request: Request, budget: int, work: list[Work]) -> int:
        """The next chunk, whole or not at all; how many tokens that is."""
        total = len(request.token_ids)
        end = min((request.computed // self.chunk + 1) * self.chunk, total)
        tokens = end - request.computed
        if tokens > budget:
            return 0
        keep = max(0, end - max(request.computed, total - request.keep))
        work.append(Work(request, tokens, keep, []))
        return tokens

    def _admit(self, budget: int, work: list[Work]) -> None:
        """Lets in who waits, in order: nobody overtakes one that lacks memory, but anybody one that lacks a page which
        another is about to compute for both."""
        for request in self.waiting[:MAX_RUNNING]:
            if budget <= 0 or len(self.running) >= MAX_RUNNING:
                return
            if request.awaited in self._computing:
                continue
            total = len(request.token_ids)
            limit = total - request.keep  # what is kept must run
            extend_keys(request.keys, request.token_ids, total)
            known = self._pool.count_shared(request.token_ids, request.keys, limit)
            if (known + 1) * PAGE <= limit and request.keys[known] in self._computing:
                request.awaited = request.keys[known]
                continue
            # A page is left over for each of the others, or they would soon take back what this one gets.
            grant = self._pool.acquire(request.token_ids, request.keys, limit, len(self.running))
            if grant is None:
                return
            if grant.copy is not None:
                self.copies.append(grant.copy)
            self.waiting.remove(request)
            request.begin(grant.pages, grant.tokens)
            bisect.insort(self.running, request, key=_arrival)
            for key in request.keys[request.computed // PAGE :]:
                self._computing.setdefault(key, request)
            budget -= self._read(request, budget, work)

    def _release(self, request: Request) -> None:
        self._drop_computing(request, request.computed // PAGE, len(request.keys))
        self._pool.release(request.pages, request.token_ids, request.keys, request.computed)
        request.pages, request.computed = [], 0

    def _drop_computing(self, request: Request, start: int, end: int) -> None:
        for key in request.keys[start:end]:
            if self._computing.get(key) is request:
                del self._computing[key]


def _arrival(request: Request) -> int:
    return request.arrival
