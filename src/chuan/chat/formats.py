"""What a chat format is: something that renders messages as the ids a model was trained on, or is to be trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from chuan.chat.messages import Message


@dataclass(frozen=True)
class Lesson:
    """A conversation to learn from. `targets[t]` is the id that position t of `ids` is to predict; None: nothing."""

    ids: list[int]
    targets: list[int | None]


class ChatFormat(Protocol):
    """Renders a conversation; its control tokens are placed by code, never by a message's text."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end the answer beside eos: the opening of another's turn."""
        ...

    def render(self, messages: Sequence[Message], context_length: int, max_new_tokens: int | None) -> list[int]:
        """Checked messages to prompt ids.

        The prompt leaves room for `max_new_tokens`, where that is given. Raises PromptTooLongError where it cannot
        without losing what must not be lost.
        """
        ...

    def build_lesson(self, messages: Sequence[Message]) -> Lesson:
        """A whole conversation, its assistant's turns to be learned: the ids that `render` would give, and targets.

        Raises ChuanError where the format cannot say what is learned.
        """
        ...
