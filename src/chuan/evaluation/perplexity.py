"""Perplexity and bits per byte of a text, and loss against how far into the context a token stands.

In: a decoder, a tokenizer and texts. Out: sums of negative log-likelihoods in nats, with what they are divided by.
Every token is scored once, in strided windows: a window sees `context` tokens and scores those not scored before.
Bits per byte compares models of different vocabularies; perplexity does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from chuan.errors import ChuanError
from chuan.model.decoder import Decoder
from chuan.model.kv_cache import KVCache
from chuan.tokenizer.tokenizer import Tokenizer

_CHUNK = 512  # tokens whose logits are in memory at once
_HAN_SHARE = (
    0.3  # from this share of Han among the letters of a line it is Chinese: one Han is a syllable, not a letter
)


@dataclass(frozen=True)
class TextLoss:
    """`nats` over `tokens` tokens, which are `size` bytes of UTF-8."""

    nats: float
    tokens: int
    size: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.size

    def __add__(self, other: TextLoss) -> TextLoss:
        return TextLoss(self.nats + other.nats, self.tokens + other.tokens, self.size + other.size)


@dataclass(frozen=True)
class Bucket:
    """The mean loss in nats of the tokens at positions `first` to `last` of a window, over all windows."""

    first: int
    last: int
    tokens: int
    loss: float


def measure_text(
    decoder: Decoder, tokenizer: Tokenizer, text: str, context: int | None = None, stride: int | None = None
) -> TextLoss:
    """The loss of a text; `context` is the model's own and `stride` half of it where they are None.

    A model with a beginning-of-text token is asked for the first token too; without one that token is not scored, and
    its bytes are not counted. Raises ChuanError for a text of less than two tokens and for an impossible stride.
    """
    context = context if context is not None else decoder.config.context_length
    stride = stride if stride is not None else max(1, context // 2)
    if context < 2 or not 1 <= stride < context:
        raise ChuanError(f"a stride of {stride} does not fit a context of {context}; give one from 1 to {context - 1}")
    ids = [*tokenizer.prompt_prefix, *tokenizer.encode(text)]
    if len(ids) < 2:
        raise ChuanError("the text is too short to score; give one of several words")
    nats, scored = 0.0, 1
    for begin in range(0, len(ids), stride):
        losses = measure_window(decoder, ids[begin : begin + context])
        end = min(begin + context, len(ids))
        nats += float(losses[len(losses) - (end - scored) :].double().sum())
        scored = end
        if end == len(ids):
            break
    size = len(text.encode("utf-8"))
    if not tokenizer.prompt_prefix:
        size -= len(tokenizer.decode(ids[:1]).encode("utf-8"))
    return TextLoss(nats, len(ids) - 1, size)


def measure_languages(
    decoder: Decoder, tokenizer: Tokenizer, text: str, context: int | None = None, stride: int | None = None
) -> dict[str, TextLoss]:
    """The loss of the Chinese lines and of the others, each read as one text, and of both together as "all"."""
    parts = {language: part for language, part in split_languages(text).items() if part.strip()}
    if not parts:
        raise ChuanError("the text is empty; give one of several words")
    losses = {name: measure_text(decoder, tokenizer, part, context, stride) for name, part in parts.items()}
    return {**losses, "all": sum(losses.values(), TextLoss(0.0, 0, 0))}


def measure_positions(decoder: Decoder, ids: Sequence[int], longest: int, bucket: int = 512) -> list[Bucket]:
    """The loss by position in windows of `longest` tokens that do not overlap; the last, shorter one is left out.

    With `longest` above what the model was trained on this shows how far its positions hold. Dynamic scaling of rotary
    embeddings is seen as in generation: keys keep the frequencies they were computed with.
    """
    if len(ids) < longest:
        raise ChuanError(f"the text has {len(ids):,} tokens, and {longest:,} are to be read; give a longer one")
    starts = range(0, len(ids) - longest + 1, longest)
    losses = torch.stack([measure_window(decoder, ids[start : start + longest]) for start in starts]).double()
    means = []
    for first in range(1, longest, bucket):  # the token at position 0 is predicted by nothing
        part = losses[:, first - 1 : first - 1 + bucket]
        means.append(Bucket(first, first + part.shape[1] - 1, part.numel(), float(part.mean())))
    return means


@torch.inference_mode()
def measure_window(decoder: Decoder, ids: Sequence[int]) -> Tensor:
    """(T,) ids -> (T - 1,) losses of all but the first, float32 on the CPU; logits of a chunk at a time."""
    device = decoder.model.embed_tokens.weight.device
    known, targets = (torch.tensor(part, device=device) for part in (list(ids[:-1]), list(ids[1:])))
    cache = KVCache(decoder.config, capacity=max(1, len(known)))
    losses = []
    for start in range(0, len(known), _CHUNK):
        logits = decoder(known[None, start : start + _CHUNK], cache=cache)[0]
        losses.append(F.cross_entropy(logits.float(), targets[start : start + _CHUNK], reduction="none").cpu())
    return torch.cat(losses)


def split_languages(text: str) -> dict[str, str]:
    """The lines of a text by script, joined again: "zh" where Han are many among the letters, else "other"."""
    lines: dict[str, list[str]] = {"zh": [], "other": []}
    for line in text.splitlines(keepends=True):
        letters = [character for character in line if character.isalpha()]
        han = sum("\u3400" <= character <= "\u9fff" or character >= "\U00020000" for character in letters)
        lines["zh" if han and han >= _HAN_SHARE * len(letters) else "other"].append(line)
    return {language: "".join(part) for language, part in lines.items()}


def save_positions_plot(buckets: Sequence[Bucket], trained: int, path: Path) -> None:
    """Perplexity over position as a PNG, with a line at the context that the model was trained on."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([bucket.last for bucket in buckets], [math.exp(bucket.loss) for bucket in buckets], marker="o")
    axes.axvline(trained, linestyle="--", color="grey", label=f"trained context, {trained:,}")
    axes.set_yscale("log")
    axes.set_xlabel("position in the context, tokens")
    axes.set_ylabel("perplexity")
    axes.legend()
    figure.savefig(path, format="png", dpi=120)
