"""Many prompts at once on the engine: the logits of letters after each one's last token, or replies.

In: prompts as ids, or requests. Out: a few logits each, or the finished requests. What prompts have in common (the
demonstrations of a subject) is computed once: the engine finds it again by its pages. Prompts of different lengths
share a pass without padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from chuan.inference.engine import Engine
from chuan.inference.request import Request

R = TypeVar("R", bound=Request)
# Prompts that the engine holds at once: enough that those of the next subject fill its steps while others wait.
_AT_ONCE = 128


def score_letters(
    engine: Engine, prompts: Iterable[Sequence[int]], letter_ids: Sequence[int]
) -> Iterator[tuple[int, list[float]]]:
    """(number of the prompt, logits of the letters), as they are finished. Raises ChuanError for one too long."""
    for number, request in run_requests(engine, (engine.build_scoring(prompt, 1) for prompt in prompts)):
        yield number, request.logits[0, list(letter_ids)].tolist()


def run_requests(engine: Engine, requests: Iterable[R]) -> Iterator[tuple[int, R]]:
    """(number of the request, request) as they are finished. Raises the first error of any; the rest is cancelled."""
    waiting = iter(enumerate(requests))
    running: dict[int, R] = {}
    try:
        while True:
            while len(running) < _AT_ONCE and (taken := next(waiting, None)) is not None:
                number, request = taken
                engine.add(request)
                running[number] = request
            if not running:
                return
            engine.step()
            for number in [number for number, request in running.items() if request.finished]:
                request = running.pop(number)
                if request.error is not None:
                    raise request.error
                yield number, request
    finally:
        for request in running.values():
            engine.cancel(request)
