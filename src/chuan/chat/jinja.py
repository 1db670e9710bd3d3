"""Jinja chat templates of other models, in a sandbox, with contents that cannot forge control tokens.

In: checked messages and a model's own template. Out: prompt ids, equal to transformers' `apply_chat_template` wherever
no message holds a control string. Knows nothing of any particular template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from chuan.chat.formats import Lesson
from chuan.chat.messages import Message
from chuan.errors import ChuanError, PromptTooLongError, first_line
from chuan.sequences import count_common
from chuan.tokenizer.tokenizer import Tokenizer

# What a template may raise while it is compiled or rendered; anybody may have written it.
_FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
_STAND_INS = range(0xF0000, 0xFFFFD)  # a private-use plane of Unicode: no text has a meaning there


class JinjaChat:
    """A model's chat template. `special` names its special tokens (bos_token ...), which templates print."""

    def __init__(self, tokenizer: Tokenizer, template: str, special: Mapping[str, str]) -> None:
        self._tokenizer = tokenizer
        self._special = dict(special)
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        del environment.globals["lipsum"]  # transformers' templates have no use for a maker of text
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
        try:
            self._template = environment.from_string(template)
        except _FAILURES as error:
            raise ChuanError(f"the model's chat template is not valid Jinja: {first_line(error):.200}") from None
        names = sorted(tokenizer.control_pieces, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        # Without these characters no content can be any part of a control string. Spaces stay: templates trim them.
        self._guarded = sorted({character for name in names for character in name if not character.isspace()})

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return ()

    def render(self, messages: Sequence[Message], context_length: int, max_new_tokens: int | None) -> list[int]:
        room = context_length - (max_new_tokens if max_new_tokens is not None else 1)
        if room <= 0:
            raise ChuanError(
                f"max_new_tokens {max_new_tokens} leaves no prompt in a context of {context_length}; lower it"
            )
        ids = self._encode(messages)
        excess = len(ids) - room
        if excess > 0:
            raise PromptTooLongError(
                f"the conversation is {excess} tokens too long: {len(ids)} for the {room} that a context of "
                f"{context_length} leaves; shorten it or lower max_new_tokens",
                excess,
            )
        return ids

    def build_lesson(self, messages: Sequence[Message]) -> Lesson:
        """Learned is what the template writes for an assistant's turn behind the opening of one, its end included."""
        ids = self._encode(messages)
        targets: list[int | None] = [None] * len(ids)
        whole = self._render_text(messages)
        for number, message in enumerate(messages):
            if message.role != "assistant":
                continue
            if number == 0:
                raise ChuanError("the conversation begins with the assistant; begin it with the user")
            before, after = messages[:number], messages[: number + 1]
            opened, closed = self._render_text(before, opening=True), self._render_text(after)
            if not (closed.startswith(opened) and whole.startswith(closed)):
                raise ChuanError(
                    "the chat template changes a turn once the conversation goes on, so what is learned cannot be "
                    "told; use a template that does not"
                )
            # Letters on both sides of a border may make one piece; it belongs to what comes after.
            begin, end = count_common(self._encode(before, opening=True), ids), count_common(self._encode(after), ids)
            targets[max(begin, 1) - 1 : end - 1] = ids[max(begin, 1) : end]
        return Lesson(ids, targets)

    def _encode(self, messages: Sequence[Message], opening: bool = False) -> list[int]:
        plain = self._render_text(messages, opening)
        guard, unguard = self._build_guards("".join(message.content for message in messages))
        hidden = [Message(message.role, message.content.translate(guard)) for message in messages]
        guarded = self._render_text(hidden, opening)
        trusted = [match.span() for match in self._control.finditer(guarded)]
        # Stand-ins are one for one, so equal spans mean that no content takes part in a control string.
        if guarded.translate(unguard) == plain and [m.span() for m in self._control.finditer(plain)] == trusted:
            return self._tokenizer.encode(plain, control=True)
        ids: list[int] = []
        end = 0
        for start, next_end in trusted:
            ids += self._tokenizer.encode(guarded[end:start].translate(unguard))
            ids.append(self._tokenizer.control_pieces[guarded[start:next_end]])
            end = next_end
        return ids + self._tokenizer.encode(guarded[end:].translate(unguard))

    def _build_guards(self, text: str) -> tuple[dict[int, int], dict[int, int]]:
        """Translation tables that hide the guarded characters behind ones that the text does not hold, and back."""
        used = set(map(ord, text))
        free = (code for code in _STAND_INS if code not in used)
        guard = {ord(character): next(free) for character in self._guarded}
        return guard, {stand_in: code for code, stand_in in guard.items()}

    def _render_text(self, messages: Sequence[Message], opening: bool = False) -> str:
        values: dict[str, Any] = {
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "add_generation_prompt": opening or messages[-1].role != "assistant",
        }
        try:
            return self._template.render(**values, **self._special)
        except _FAILURES as error:
            raise ChuanError(f"the model's chat template refuses this conversation: {first_line(error):.200}") from None


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    # Jinja's own filter escapes for HTML, which is not what templates mean.
    return json.dumps(value, ensure_ascii=False, indent=indent)
