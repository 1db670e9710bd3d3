"""The messages of a conversation, checked.

In: what a caller wrote. Out: a tuple of `Message`, or a ChuanError that names the message. The caller's list is never
changed. Knows no tokenizer and no template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chuan.errors import ChuanError

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn."""

    role: str
    content: str


def check_messages(messages: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Roles are system (first only), user, assistant; contents are non-empty text; there is a user turn."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise ChuanError('messages must be a list such as [{"role": "user", "content": "Hello"}]')
    checked = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ChuanError(f'message {index} must be a table with "role" and "content", not {message!r:.60}')
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise ChuanError(f"message {index} has the role {role!r:.60}; roles are system, user and assistant")
        if role == "system" and index > 0:
            raise ChuanError(f"message {index} is a system message; only the first message can be one")
        if not isinstance(content, str) or not content.strip():
            raise ChuanError(f"message {index} ({role}) has no text in its content")
        checked.append(Message(role, content))
    if not any(message.role == "user" for message in checked):
        raise ChuanError("the conversation has no user message to answer")
    return tuple(checked)
