"""A SentencePiece BPE vocabulary learned from texts.

In: a sample of texts and the settings. Out: the bytes of a `tokenizer.model`, and sentencepiece's log beside it. Knows
no corpus and no folder of a model.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from pydantic import Field, field_validator, model_validator
from sentencepiece import sentencepiece_model_pb2 as spm_pb2

from chuan.errors import ChuanError
from chuan.recipes import Settings
from chuan.tokenizer.sample import Kind, TextSample

# Ids as in the published vocabularies: <unk> is also what pads.
UNKNOWN_ID, BOS_ID, EOS_ID = 0, 1, 2
USER_ID, ASSISTANT_ID = 195, 196  # generation_config.json of Baichuan2-7B-Chat
_FIRST_FREE_ID = 3
_BYTES = 256
_FORBIDDEN = re.compile("[\0\x1f ▁▅]")  # what never reaches the matcher of pieces as it is

# (what is done, steps done, of how many)
Progress = Callable[[str, int, int], None]


class SampleSettings(Settings):
    """Megabytes of memory for the sample of each kind of text.

    100 MB of Chinese prose are 30 million characters. With these sizes training peaks below 3 GB.
    """

    han: float = Field(default=100, ge=0)
    latin: float = Field(default=100, ge=0)
    code: float = Field(default=50, ge=0)
    other: float = Field(default=20, ge=0)
    seed: int = 0

    def build(self) -> TextSample:
        """An empty sample with these budgets."""
        sizes: dict[Kind, float] = {"han": self.han, "latin": self.latin, "code": self.code, "other": self.other}
        return TextSample({kind: int(size * 1e6) for kind, size in sizes.items()}, self.seed)


class TrainingSettings(Settings):
    """What is learned; the defaults are those of the Baichuan 2 report (its section on the tokenizer)."""

    vocab_size: int = Field(default=32_000, ge=400, le=1_000_000)
    character_coverage: float = Field(default=0.9999, ge=0.98, le=1)  # rarer characters become bytes
    max_piece_length: int = Field(default=32, ge=1, le=512)  # in characters
    split_digits: bool = True
    dummy_prefix: bool = False  # a space before every text, as the first generation has it
    user_pieces: list[str] = Field(default=["\n", "\t"])  # always one token each, never part of another
    reserved: int = Field(
        default=300, ge=0
    )  # <reserved_N> behind them, as many as published; ids 195 and 196 are roles
    threads: int = Field(default=0, ge=0, le=1024)  # 0 is as many as there are cores. Changes no output

    @field_validator("user_pieces")
    @classmethod
    def _usable(cls, pieces: list[str]) -> list[str]:
        for piece in pieces:
            if not piece or _FORBIDDEN.search(piece):
                raise ValueError(f"{piece!r} cannot be a piece: it is empty or holds a space or a control character")
            if pieces.count(piece) > 1:
                raise ValueError(f"{piece!r} is there twice")
            if re.fullmatch(r"<(?:unk|s|/s|pad|0x[0-9A-F]{2}|reserved_\d+)>", piece):
                raise ValueError(f"{piece} is a piece already")
        return pieces

    @model_validator(mode="after")
    def _roles_fit(self) -> TrainingSettings:
        first_reserved = _FIRST_FREE_ID + len(self.user_pieces)
        if not first_reserved <= USER_ID < ASSISTANT_ID < first_reserved + self.reserved:
            raise ValueError(
                f"ids {USER_ID} and {ASSISTANT_ID} have to be reserved pieces for the chat's roles, and these are "
                f"{first_reserved} to {first_reserved + self.reserved - 1}; change reserved or user_pieces"
            )
        return self

    @property
    def fixed_pieces(self) -> int:
        """How many pieces are there before any is learned."""
        return _FIRST_FREE_ID + len(self.user_pieces) + self.reserved + _BYTES


def train_sentencepiece(
    sample: TextSample, settings: TrainingSettings, folder: Path, progress: Progress = lambda *_: None
) -> bytes:
    """Learns the pieces; `training.log` in `folder` is sentencepiece's. The sample is empty afterwards.

    The bytes depend on the sample and the settings alone. Raises ChuanError where the sample is empty, or too small for
    so many pieces, or holds more characters than there are pieces.
    """
    progress("counting words", 0, 1)
    words = sample.take_words(settings.user_pieces)
    progress("counting words", 1, 1)
    if not words:
        raise ChuanError("there is no text to learn a vocabulary from; name other sources, or larger samples")
    if settings.vocab_size <= settings.fixed_pieces:
        raise ChuanError(
            f"vocab_size {settings.vocab_size:,} leaves nothing to learn: {settings.fixed_pieces:,} pieces are fixed "
            "(reserved, user_pieces, bytes); raise it"
        )
    table, prefix = folder / "words.tsv", folder / "trained"
    _write_words(table, words)
    try:
        _run(_trainer_options(settings, table, prefix), folder / "training.log", settings, progress)
        return _finish(prefix.with_suffix(".model").read_bytes(), settings)
    finally:
        for path in (table, prefix.with_suffix(".model"), prefix.with_suffix(".vocab")):
            path.unlink(missing_ok=True)


def _write_words(path: Path, words: Counter[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        while words:  # emptied as it is written: the trainer needs the memory
            word, count = words.popitem()
            file.write(f"{word}\t{count}\n")


def _trainer_options(settings: TrainingSettings, table: Path, prefix: Path) -> dict[str, object]:
    return {
        "input": [str(table)],
        "input_format": "tsv",
        "model_prefix": str(prefix),
        "model_type": "bpe",
        "vocab_size": settings.vocab_size,
        "character_coverage": settings.character_coverage,
        "max_sentencepiece_length": settings.max_piece_length,
        "max_sentence_length": 1 << 20,  # words are short already
        "split_digits": settings.split_digits,
        "byte_fallback": True,
        "allow_whitespace_only_pieces": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,  # words are not texts; see _finish
        "user_defined_symbols": [*settings.user_pieces, *(f"<reserved_{i}>" for i in range(settings.reserved))],
        "num_threads": settings.threads or len(os.sched_getaffinity(0)),
    }


def _run(options: dict[str, object], log: Path, settings: TrainingSettings, progress: Progress) -> None:
    """Trains in a process of its own, and reads from its log how far it is."""
    learned = settings.vocab_size - settings.fixed_pieces
    progress("training", 0, learned)
    with log.open("wb") as log_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "chuan.tokenizer.spm_process"], stdin=subprocess.PIPE, stderr=log_file, text=True
        )
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(options) + "\n")
        process.stdin.flush()
        while process.poll() is None:
            time.sleep(0.1)
            progress("training", min(_count_merges(log), learned), learned)
    except BrokenPipeError:
        process.wait()  # it ended before it had read its options
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
    if process.returncode:
        raise ChuanError(_explain(process.returncode, _tail(log), settings))
    progress("training", learned, learned)


def _count_merges(log: Path) -> int:
    found = re.findall(r"merges=(\d+)", _tail(log))
    return int(found[-1]) if found else 0


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        return file.read().decode("utf-8", "replace")


def _explain(code: int, tail: str, settings: TrainingSettings) -> str:
    if found := re.search(r"set it to a value <= (\d+)", tail):
        return (
            f"the texts make {int(found[1]):,} pieces at most, and vocab_size is {settings.vocab_size:,}; lower it, or "
            "give more text"
        )
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", tail):
        return (
            f"the characters of the texts alone need {int(found[1]):,} pieces, and vocab_size is "
            f"{settings.vocab_size:,}; raise it above that, or lower character_coverage"
        )
    if code < 0:
        return (
            f"sentencepiece was ended by signal {-code}; if memory ran out (9), lower the sizes of [sample], else try "
            "again"
        )
    lines = tail.strip().splitlines() or ["it said nothing"]
    return f"sentencepiece could not train: {lines[-1][:300]}; change the settings it names"


def _finish(model_file: bytes, settings: TrainingSettings) -> bytes:
    """Sets the prefix, and takes out what depends on this machine: names of files, number of threads."""
    proto = spm_pb2.ModelProto()
    proto.ParseFromString(model_file)
    proto.normalizer_spec.add_dummy_prefix = settings.dummy_prefix
    for name in ("input", "model_prefix", "input_format", "num_threads", "max_sentence_length"):
        proto.trainer_spec.ClearField(name)
    return proto.SerializeToString(deterministic=True)
