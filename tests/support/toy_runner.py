"""A runner without a model: its "keys" are the token ids themselves, so that a mix-up of pages changes the answer."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from chuan.inference.pages import PAGE
from chuan.inference.runner import CHUNK, Piece
from chuan.model.config import ModelConfig
from chuan.tokenizer.streaming import PieceTable
from chuan.tokenizer.tokenizer import Tokenizer
from tests.support.tiny import build_tiny_config

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class ToyTokenizer(Tokenizer):
    """One letter an id."""

    control_pieces: dict[str, int] = {}  # noqa: RUF012
    table = PieceTable(LETTERS, "each part")

    def _encode(self, text: str, control: bool) -> list[int]:
        return [LETTERS.index(letter) for letter in text]

    def build_json(self) -> dict[str, object]:
        return {}


class ToyRunner:
    """The next id follows from the last two, but at every fifth place from all: regular enough to be guessed."""

    chunk = CHUNK

    def __init__(self, page_count: int, context_length: int = 4096) -> None:
        self.config: ModelConfig = build_tiny_config(vocab_size=26, max_position_embeddings=context_length)
        self.page_count = page_count
        self.slots: list[int | None] = [None] * (page_count * PAGE)
        self.steps: list[list[Piece]] = []

    def run(self, pieces: Sequence[Piece]) -> Tensor:
        self.steps.append(list(pieces))
        rows: list[int] = []
        for piece in pieces:
            places = [page * PAGE + offset for page in piece.pages for offset in range(PAGE)]
            end = piece.past + len(piece.token_ids)
            assert end <= self.config.context_length
            for place, token_id in zip(places[piece.past : end], piece.token_ids, strict=True):
                self.slots[place] = token_id
        for piece in pieces:  # after all have written: a page that two of them write to is noticed
            places = [page * PAGE + offset for page in piece.pages for offset in range(PAGE)]
            end = piece.past + len(piece.token_ids)
            token_ids = [self.slots[place] for place in places[:end]]
            rows += [follow(token_ids[: end - back]) for back in reversed(range(piece.keep))]
        return torch.nn.functional.one_hot(torch.tensor(rows, dtype=torch.long), 26).float()

    def copy_page(self, source: int, target: int) -> None:
        self.slots[target * PAGE : (target + 1) * PAGE] = self.slots[source * PAGE : (source + 1) * PAGE]


def follow(token_ids: Sequence[int | None]) -> int:
    """The id after these."""
    seen = token_ids if len(token_ids) % 5 == 0 else token_ids[-2:]
    return zlib.crc32(repr(list(seen)).encode()) % 26


def answer(prompt_ids: Sequence[int], count: int) -> list[int]:
    """What the engine must say, whatever else it is doing."""
    token_ids = list(prompt_ids)
    for _ in range(count):
        token_ids.append(follow(token_ids))
    return token_ids[len(prompt_ids) :]
