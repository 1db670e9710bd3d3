"""One pass of a model over new tokens of several sequences: the only place where the engine touches tensors.

In: `Piece`s, each some new tokens of a sequence and the pages of its keys and values. Out: logits. Knows no requests:
whose the tokens are and what comes of the logits is the engine's business. Letters: T new tokens of all pieces, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from chuan.inference.pages import PAGE
from chuan.model.config import ModelConfig
from chuan.model.decoder import Decoder
from chuan.model.paged_cache import PagedCache, Span

# Tokens of a prompt that are read at a time.
CHUNK = 256


@dataclass(frozen=True)
class Piece:
    """New tokens of one sequence.

    past: how many tokens are in the cache before them. pages: where the keys and values of all of them are, in order.
    keep: of how many of the last tokens the logits are wanted, possibly none.
    """

    token_ids: Sequence[int]
    past: int
    pages: Sequence[int]
    keep: int

    @property
    def span(self) -> Span:
        """Where its tokens are in the cache."""
        return Span(self.past, len(self.token_ids), self.pages)


class Runner(Protocol):
    """What the engine asks of a model. No sequence's logits may depend on what else is in the batch.

    chunk: tokens of a prompt that it reads at a time; two of these are a full step.
    """

    config: ModelConfig
    page_count: int
    chunk: int

    def run(self, pieces: Sequence[Piece]) -> Tensor:
        """Writes the new keys and values into the pages; float32 logits (sum of keep, V) on the CPU, in order."""
        ...

    def copy_page(self, source: int, target: int) -> None:
        """Copies the keys and values of one page to another, in every layer."""
        ...

    def finish_loading(self) -> None:
        """Does what loading put off for the first answer to come early: from then on steps differ in nothing else."""
        ...


def lay_out(pieces: Sequence[Piece]) -> tuple[list[int], list[int], list[int]]:
    """The pieces end to end: T ids, T positions, and the indices of the tokens whose logits are wanted."""
    token_ids: list[int] = []
    positions: list[int] = []
    kept: list[int] = []
    for piece in pieces:
        token_ids += piece.token_ids
        positions += range(piece.past, piece.past + len(piece.token_ids))
        kept += range(len(token_ids) - piece.keep, len(token_ids))
    return token_ids, positions, kept


class TorchRunner:
    """Runs the plain decoder: its linears see the tokens of all pieces at once, attention each sequence by itself.

    Logits depend on the company of a sequence within rounding only.
    """

    chunk = CHUNK

    def __init__(self, decoder: Decoder, page_count: int) -> None:
        self.config = decoder.config
        self.page_count = page_count
        self._decoder = decoder
        self._cache: PagedCache | None = None

    @torch.inference_mode()
    def run(self, pieces: Sequence[Piece]) -> Tensor:
        if self.config.has_dynamic_rope and len(pieces) > 1:  # each alone
            return torch.cat([self.run([piece]) for piece in pieces])
        weight = self._decoder.model.embed_tokens.weight
        if self._cache is None:
            self._cache = PagedCache(self.config, self.page_count, PAGE, weight.dtype, weight.device)
        self._cache.begin([piece.span for piece in pieces])
        token_ids, positions, kept = lay_out(pieces)
        logits = self._decoder(
            torch.tensor([token_ids], device=weight.device),
            self._cache,
            positions=torch.tensor([positions], device=weight.device),
            logits_to_keep=torch.tensor(kept, dtype=torch.long, device=weight.device),
        )
        return logits[0].float().cpu()

    def finish_loading(self) -> None:
        pass

    @torch.inference_mode()
    def copy_page(self, source: int, target: int) -> None:
        assert self._cache is not None, "nothing has been computed yet"
        self._cache.copy_page(source, target)
