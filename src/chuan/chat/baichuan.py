"""The Baichuan chat format, by ids.

In: checked messages. Out: prompt ids. A round begins at each user message; a message is its role's id and its text;
system text stands in front without a mark; no eos stands between turns; the assistant's id opens the answer.
The published truncation drops whole old rounds, newest kept first. Where it would go on to drop system text, the mark
of a turn or part of the last message, this raises and says by how many tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from chuan.chat.formats import Lesson
from chuan.chat.messages import Message
from chuan.errors import ChuanError, PromptTooLongError
from chuan.tokenizer.tokenizer import Tokenizer

# What the published generation_config.json reserves for an answer.
DEFAULT_MAX_NEW_TOKENS = 2048


class BaichuanChat:
    """Baichuan-7B's and Baichuan2-7B's conversations. The roles' ids come from `generation_config.json`."""

    def __init__(self, tokenizer: Tokenizer, user_id: int, assistant_id: int) -> None:
        self._tokenizer = tokenizer
        self.user_id = user_id
        self.assistant_id = assistant_id

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return (self.user_id,)

    def render(self, messages: Sequence[Message], context_length: int, max_new_tokens: int | None) -> list[int]:
        if max_new_tokens is None:
            max_new_tokens = min(DEFAULT_MAX_NEW_TOKENS, context_length // 2)
        budget = context_length - max_new_tokens
        if budget <= 0:
            raise ChuanError(
                f"max_new_tokens {max_new_tokens} leaves no prompt in a context of {context_length}; lower it"
            )
        system: list[int] = []
        rounds: list[list[int]] = []
        for message in messages:
            content = self._tokenizer.encode(message.content)
            if message.role == "system":
                system = content
                continue
            if message.role == "user" or not rounds:
                rounds.append([])
            rounds[-1] += [self.user_id if message.role == "user" else self.assistant_id, *content]
        opening = [] if messages[-1].role == "assistant" else [self.assistant_id]
        history = _newest_rounds(rounds, budget - len(system))
        prompt = system + history + opening
        excess = len(prompt) - budget
        if excess > 0:
            raise PromptTooLongError(
                f"the conversation is {excess} tokens too long: {len(prompt)} for the {budget} that a context of "
                f"{context_length} leaves beside max_new_tokens {max_new_tokens}; shorten it",
                excess,
            )
        return prompt

    def build_lesson(self, messages: Sequence[Message]) -> Lesson:
        """As the published fine-tuning does: no eos stands in the ids, and what ends a turn learns to predict it, where
        the ids go on with the other role's mark."""
        eos = self._tokenizer.eos_id
        if eos is None:
            raise ChuanError("the tokenizer has no eos, which ends each answer; this chat format needs one")
        ids: list[int] = []
        labels: list[int | None] = []
        answered = False
        for message in messages:
            content = self._tokenizer.encode(message.content)
            if message.role == "assistant":
                ids += [self.assistant_id, *content]
                labels += [None, *content]
            else:
                mark = [self.user_id] if message.role == "user" else []
                ids += [*mark, *content]
                labels += [eos if answered else None] * len(mark) + [None] * len(content)
            answered = message.role == "assistant"
        return Lesson(ids, [*labels[1:], eos if answered else None])


def render_template(user_piece: str, assistant_piece: str, opening_mark: str | None = None) -> str:
    """The same format as a Jinja template, for other programs.

    Where the tokenizer sets a dummy prefix at the start of a text (the first generation), each message has one of its
    own, which has to be written out as a space; and none may stand before a mark that opens the text. `opening_mark`
    says that to our `tokenizer.json`. llama.cpp sets a prefix behind every control token by itself: there, and without
    a dummy prefix, it is None.
    """
    opening, space = "", ""
    if opening_mark is not None:
        mark = opening_mark.encode("unicode_escape").decode("ascii")
        opening = "{% if messages[0]['role'] != 'system' %}{{ '" + mark + "' }}{% endif %}"
        space = "{{ ' ' }}"
    return (
        opening + "{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ " + repr(user_piece) + " }}" + space + ""
        "{% elif message['role'] == 'assistant' %}{{ " + repr(assistant_piece) + " }}" + space + "{% endif %}"
        "{{ message['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ " + repr(assistant_piece) + " }}{% endif %}"
    )


def _newest_rounds(rounds: list[list[int]], budget: int) -> list[int]:
    """The newest round whatever its length, then older ones while they fit."""
    history: list[int] = []
    for ids in reversed(rounds):
        if history and len(history) + len(ids) > budget:
            break
        history = ids + history
        if len(history) >= budget:
            break
    return history
