"""Letters scored on the engine: the logits after the last token of each prompt, many prompts at once.

In: prompts as ids. Out: a few logits each. What prompts have in common (the demonstrations of a subject) is computed
once: the engine finds it again by its pages. Prompts of different lengths share a pass without padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from chuan.inference.engine import Engine
from chuan.inference.request import Scoring

# Prompts that the engine holds at once: enough that those of the next subject fill its steps while others wait.
_AT_ONCE = 128


def score_letters(
    engine: Engine, prompts: Iterable[Sequence[int]], letter_ids: Sequence[int]
) -> Iterator[tuple[int, list[float]]]:
    """(number of the prompt, logits of the letters), as they are finished. Raises ChuanError for one too long."""
    waiting = iter(enumerate(prompts))
    running: dict[int, Scoring] = {}
    try:
        while True:
            while len(running) < _AT_ONCE and (taken := next(waiting, None)) is not None:
                number, prompt = taken
                running[number] = engine.build_scoring(prompt, 1)
                engine.add(running[number])
            if not running:
                return
            engine.step()
            for number in [number for number, request in running.items() if request.finished]:
                request = running.pop(number)
                if request.error is not None:
                    raise request.error
                yield number, request.logits[0, list(letter_ids)].tolist()
    finally:
        for request in running.values():
            engine.cancel(request)
