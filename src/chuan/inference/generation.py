"""One answer: prefill, decode, whole characters out.

In: a decoder, prompt ids, options. Out: `Increment`s. The keys of a previous prompt are used again as far as the two
agree. Knows no chat format and no files. Letters: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from chuan.errors import ChuanError, PromptTooLongError
from chuan.inference.sampling import Sampler, SamplingOptions
from chuan.model.decoder import Decoder
from chuan.model.kv_cache import KVCache
from chuan.tokenizer.streaming import StopStrings
from chuan.tokenizer.tokenizer import Tokenizer

# Where nobody says how long an answer may be.
DEFAULT_MAX_NEW_TOKENS = 2048
# A prompt is read in pieces, so that its scores (T x all tokens, for every head) stay small.
PREFILL_CHUNK = 512


@dataclass(frozen=True)
class Increment:
    """New whole characters of an answer, and the counts so far; `finish_reason` is set on the last one only."""

    text: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    finish_reason: Literal["stop", "length"] | None


@dataclass
class Prefix:
    """What a cache holds: the ids whose keys are in it."""

    cache: KVCache
    token_ids: list[int] = field(default_factory=list)


def prefill(decoder: Decoder, prefix: Prefix, prompt_ids: Sequence[int]) -> tuple[Tensor, int]:
    """Reads the prompt into the cache. Returns the last token's logits (V,), and how many ids were there already."""
    shared = 0
    for old, new in zip(prefix.token_ids, prompt_ids[:-1], strict=False):  # the last id must run, for its logits
        if old != new:
            break
        shared += 1
    prefix.cache.truncate(shared)
    prefix.token_ids = list(prompt_ids[:shared])
    device = decoder.model.embed_tokens.weight.device
    logits = None
    for start in range(shared, len(prompt_ids), PREFILL_CHUNK):
        ids = list(prompt_ids[start : start + PREFILL_CHUNK])
        logits = decoder(torch.tensor([ids], device=device), prefix.cache, logits_to_keep=1)[0, -1]
        prefix.token_ids += ids
    assert logits is not None
    return logits, shared


def decode(decoder: Decoder, prefix: Prefix, token_id: int) -> Tensor:
    """Reads one token more; returns its logits (V,)."""
    device = decoder.model.embed_tokens.weight.device
    logits: Tensor = decoder(torch.tensor([[token_id]], device=device), prefix.cache)[0, -1]
    prefix.token_ids.append(token_id)
    return logits


def stream_answer(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    options: SamplingOptions,
    stop_ids: Collection[int],
    prefix: Prefix,
) -> Iterator[Increment]:
    """Generates until a stop id, a stop string, or the length; yields text as soon as it is certain."""
    check_ids(prompt_ids, decoder.config.vocab_size)
    max_new_tokens = fit_length(len(prompt_ids), options.max_new_tokens, decoder.config.context_length)
    text, stops = tokenizer.stream(), StopStrings(options.stop)
    device = decoder.model.embed_tokens.weight.device
    sampler = Sampler(options, prompt_ids, decoder.config.vocab_size, device)
    with torch.inference_mode():
        logits, cached = prefill(decoder, prefix, prompt_ids)
    count = 0
    finish: Literal["stop", "length"] | None = None
    while finish is None:
        with torch.inference_mode():
            token_id = sampler.choose(logits)
        count += 1
        if token_id in stop_ids:
            out, finish = stops.push(text.flush()), "stop"
        else:
            out = stops.push(text.push(token_id))
            if stops.stopped:
                finish = "stop"
            elif count == max_new_tokens:
                out, finish = out + stops.push(text.flush()), "length"
            else:
                with torch.inference_mode():
                    logits = decode(decoder, prefix, token_id)
        if finish is not None:
            out += stops.flush()
        if out or finish is not None:
            yield Increment(out, len(prompt_ids), cached, count, finish)


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
