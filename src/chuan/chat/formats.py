"""What a chat format is: something that renders messages as the ids a model was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from chuan.chat.messages import Message


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
