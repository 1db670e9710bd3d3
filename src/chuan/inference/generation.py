"""What an answer comes as, and how long it may be.

In: a prompt's ids and a wish. Out: whether they fit. Knows neither model nor text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from chuan.errors import ChuanError, PromptTooLongError

FinishReason = Literal["stop", "length", "cancelled"]
# Where nobody says how long an answer may be.
DEFAULT_MAX_NEW_TOKENS = 2048


@dataclass(frozen=True)
class Increment:
    """New whole characters of an answer, and the counts so far; `finish_reason` is set on the last one only."""

    text: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    finish_reason: FinishReason | None


def fit_length(prompt_tokens: int, max_new_tokens: int | None, context_length: int) -> int:
    """How many tokens may come. What was asked for must fit; unasked, it is what fits, at most 2,048."""
    room = context_length - prompt_tokens
    wanted = 1 if max_new_tokens is None else max_new_tokens
    if wanted > room:
        excess = wanted - room
        raise PromptTooLongError(
            f"the prompt is {excess} tokens too long: {prompt_tokens} and {wanted} new ones do not fit a context of "
            f"{context_length}; shorten it or lower max_new_tokens",
            excess,
        )
    return max_new_tokens if max_new_tokens is not None else min(room, DEFAULT_MAX_NEW_TOKENS)


def check_ids(token_ids: Sequence[int], vocab_size: int) -> None:
    """Ids must be inside the model's vocabulary: outside, a GPU fails without saying why."""
    if not token_ids:
        raise ChuanError("the prompt is empty; give at least one token")
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise ChuanError(f"token id {token_id} is outside the model's vocabulary of {vocab_size}")
