"""A model that says what it is told to: for tests of the terminal, which must not need weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Increment:
    """The fields of chuan.inference.generation.Increment, without the engine behind it."""

    text: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    finish_reason: str | None


class ScriptedModel:
    """`respond` gives the pieces of an answer; it may raise, and it may be slow."""

    name = "scripted"

    def __init__(self, respond: Callable[[list[dict[str, str]]], Iterable[str]]) -> None:
        self.respond = respond
        self.asked: list[list[dict[str, str]]] = []
        self.closed = 0

    def stream_chat(self, messages: list[dict[str, str]], options: Any = None) -> Iterator[Increment]:
        self.asked.append(messages)
        count = 0
        try:
            for piece in self.respond(messages):
                count += 1
                yield Increment(piece, len(messages), 0, count, None)
            yield Increment("", len(messages), 0, count, "stop")
        finally:
            self.closed += 1


def respond(messages: list[dict[str, str]]) -> Iterator[str]:
    """The model of the real terminal: echoes, or does what the last message asks for."""
    last = messages[-1]["content"]
    if last == "wait":
        yield "first piece"
        time.sleep(60)
    elif last == "wait silently":
        time.sleep(60)
    elif last == "attack":
        yield "calm \x1b[31m\x1b]0;title\x07 [red]text[/red] \x9b2J end"
    elif last == "markdown":
        for piece in [
            "# Heading\n",
            "\ntext **bold** 中文",
            "中文\n\n",
            "```python\nx = 1\n\n",
            "y = 2\n```\n\n- a\n- b",
        ]:
            yield piece
            time.sleep(0.07)
    else:
        lines = last.count("\n") + 1
        for word in f"messages {len(messages)}, lines {lines}, heard {last.splitlines()[-1]}!".split(" "):
            yield word + " "
