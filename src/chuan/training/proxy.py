"""Proxies: decoders so small that what a mixture of text does to the loss is seen in seconds.

In: token shards, their tokenizer, shares of groups of sources. Out: bits per byte of held-out documents, by group.
Knows neither how a mixture is chosen nor the trainer of real models.

The most frequent pieces keep an id of their own; the others share one, and what it costs to tell them apart is counted
by how often they occur in the pool, the same for every proxy. So bits per byte are those of a whole code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from chuan.corpus.shards import ShardReader
from chuan.errors import ChuanError
from chuan.model.config import ModelConfig
from chuan.model.decoder import Decoder
from chuan.recipes import Settings
from chuan.tokenizer.tokenizer import Tokenizer

_IGNORED = -100


class ProxySettings(Settings):
    """A proxy and its training, on a CPU in float32. The defaults take about ten seconds on two cores."""

    vocabulary: int = Field(default=4096, ge=2)  # pieces; the rest share one id
    width: int = Field(default=96, ge=32, multiple_of=32)
    layers: int = Field(default=2, ge=1)
    context: int = Field(default=128, ge=8)  # tokens
    rows: int = Field(default=32, ge=1)  # of a step
    steps: int = Field(default=60, ge=1)
    learning_rate: float = Field(default=4e-3, gt=0)
    held_out: int = Field(default=16384, ge=1)  # tokens of each group that are looked at


@dataclass(frozen=True)
class HeldOut:
    """Validation documents of a group as (rows, context + 1) ids; `extra` are the nats of telling rare pieces apart."""

    rows: Tensor
    extra: float
    size: int  # bytes


@dataclass(frozen=True)
class Pool:
    """Text to train on and to judge by, for each group. `train`: (rows, context + 1)."""

    train: dict[str, Tensor]
    held_out: dict[str, HeldOut]


def read_pool(
    reader: ShardReader,
    validation: ShardReader,
    tokenizer: Tokenizer,
    groups: Mapping[str, str],
    settings: ProxySettings,
    half: int = 0,
) -> Pool:
    """As much of each group as one proxy can use. `groups`: the group of each source.

    Of the validation documents, those of one `half` (by the hash of their text) are taken: 0 or 1. Raises ChuanError
    where a group has no document of a kind.
    """
    names = list(dict.fromkeys(groups.values()))
    # Shards are shuffled: their beginning is a sample. A step more than needed, so that no group runs out early.
    needed = settings.rows * (settings.steps + 1) * settings.context
    train = _take(reader, groups, needed, lambda _: True)
    vocab_size = reader.manifest.tokenizer.vocab_size
    seen = [ids for documents in train.values() for ids in documents]
    counts = 1 + np.bincount(np.concatenate([np.empty(0, np.int64), *seen]), minlength=vocab_size)
    order = np.argsort(-counts, kind="stable")
    short = np.full(len(counts), settings.vocabulary - 1, np.int64)
    short[order[: settings.vocabulary - 1]] = np.arange(min(settings.vocabulary - 1, len(counts)))
    cost = np.zeros(len(counts))
    rare = order[settings.vocabulary - 1 :]
    cost[rare] = -np.log(counts[rare] / counts[rare].sum())
    judged = _take(validation, groups, settings.held_out, lambda text_hash: text_hash % 2 == half)
    eos = short[reader.manifest.tokenizer.eos_id]
    held_out = {}
    for name in names:
        if not judged[name]:
            raise ChuanError(f"group {name} has no validation document; build the shards with a larger share of them")
        if sum(map(len, train[name])) <= settings.context:
            raise ChuanError(f"group {name} has no row of {settings.context} tokens to train on; join it with another")
        ids = np.concatenate(judged[name])
        size = sum(len(tokenizer.decode(document[:-1].tolist()).encode()) for document in judged[name])
        row_count = math.ceil(len(ids) / settings.context)
        padded = np.full(row_count * settings.context + 1, _IGNORED)
        padded[: len(ids) + 1] = [eos, *short[ids]]
        held_out[name] = HeldOut(_cut(padded, settings.context), float(cost[ids].sum()), size)
    rows = {name: _cut(short[np.concatenate(train[name])], settings.context) for name in names}
    return Pool(rows, held_out)


def train_proxy(
    pool: Pool,
    shares: Mapping[str, float],
    settings: ProxySettings,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> Decoder:
    """A proxy trained on `shares` of the groups. The same seed: the same start, and each group's rows in one order."""
    torch.manual_seed(seed)
    vocabulary = settings.vocabulary
    model = Decoder(
        ModelConfig(vocabulary, settings.width, settings.layers, settings.width // 32, tie_word_embeddings=True)
    )
    decayed = [p for p in model.parameters() if p.ndim == 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    for step, batch in enumerate(build_batches(pool.train, shares, settings, seed)):
        warm = min(1.0, (step + 1) / max(1, settings.steps // 10))
        decay = 0.55 + 0.45 * math.cos(math.pi * step / settings.steps)  # to a tenth
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * warm * decay
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        advance()
    return model


@torch.inference_mode()
def measure(model: Decoder, pool: Pool, settings: ProxySettings) -> dict[str, float]:
    """Bits per byte of the held-out documents of each group."""
    found = {}
    for name, held_out in pool.held_out.items():
        nats = held_out.extra
        for rows in held_out.rows.split(settings.rows):
            logits = model(rows[:, :-1].clamp(min=0)).flatten(0, 1)
            nats += float(F.cross_entropy(logits, rows[:, 1:].flatten(), ignore_index=_IGNORED, reduction="sum"))
        found[name] = nats / math.log(2) / held_out.size
    return found


def _take(
    reader: ShardReader, groups: Mapping[str, str], tokens: int, wanted: Callable[[int], bool]
) -> dict[str, list[np.ndarray]]:
    """Documents of each group, once each, until there are so many tokens of it."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in groups.values()}
    left = dict.fromkeys(found, tokens)
    for number in range(len(reader)):
        about = reader.describe(number)
        name = groups[about.source]
        if left[name] <= 0 or about.copy or not wanted(about.hash):
            continue
        found[name].append(reader.document(number).astype(np.int64))
        left[name] -= len(found[name][-1])
        if max(left.values()) <= 0:
            break
    return found


def _cut(ids: np.ndarray, context: int) -> Tensor:
    """(N,) -> (N // context, context + 1): each row begins with the last token of the one before."""
    return torch.from_numpy(ids).unfold(0, context + 1, context)


def build_batches(
    train: Mapping[str, Tensor], shares: Mapping[str, float], settings: ProxySettings, seed: int
) -> list[Tensor]:
    """The steps of a training: of each group as many rows as its share is, in an order of their own, evenly spread.

    What one step happens to hold more of, the last ones above all, would differ between mixtures by chance.
    """
    random = np.random.default_rng(seed)
    total = settings.rows * settings.steps
    ends = np.rint(np.cumsum([shares[name] for name in train]) * total).astype(int)
    rows, places = [], []
    for own, count in zip(train.values(), np.diff(ends, prepend=0), strict=True):
        order = np.resize(random.permutation(len(own)), count)
        rows.append(own[torch.from_numpy(order)])
        places.append((np.arange(count) + 0.5) / count)
    sequence = np.concatenate(places).argsort(kind="stable")
    return list(torch.cat(rows)[torch.from_numpy(sequence)].split(settings.rows))
