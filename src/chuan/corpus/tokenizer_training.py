"""A tokenizer trained on the files that a recipe names.

In: a recipe. Out: a folder with `tokenizer.model`, the exact `tokenizer.json`, what goes with them, and
`compression.json`: what was sampled, and how many characters a token holds in documents that were set aside. Whole or
not there.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field, field_validator

from chuan.corpus.readers import Bad, read_records
from chuan.corpus.sources import Piece, SourceFile, SourceSettings, find_files
from chuan.errors import ChuanError
from chuan.recipes import Settings, render_recipe
from chuan.staging import check_free, staged_folder
from chuan.tokenizer.compression import PUBLISHED_RATES, Compression, find_numbers, measure_compression
from chuan.tokenizer.folder import load_tokenizer, save_tokenizer
from chuan.tokenizer.sample import KINDS, Kind, TextSample
from chuan.tokenizer.tokenizer import Tokenizer
from chuan.tokenizer.training import (
    ASSISTANT_ID,
    BOS_ID,
    EOS_ID,
    UNKNOWN_ID,
    USER_ID,
    SampleSettings,
    TrainingSettings,
    train_sentencepiece,
)

# The names of the table's columns. Numbers are taken out of all kinds.
LABELS: dict[Kind, str] = {"han": "zh", "latin": "en", "code": "code", "other": "other"}
_HELD_OUT_BYTES = 4_000_000  # of each kind: enough for four digits
_BAD_KEPT = 1000  # records that cannot be read and are listed; all are counted
_OURS = "this tokenizer"


class TokenizerRecipe(Settings):
    """What `chuan tokenizer train` reads."""

    output: str  # the folder that is written; must not exist
    data: str = "."  # the folder that paths of sources are relative to
    sources: list[SourceSettings] = Field(min_length=1)
    held_out: int = Field(default=50, ge=2)  # one document in so many, by its hash, is measured and not learned from
    max_bad_share: float = Field(default=0.01, ge=0, le=1)  # of the records; more that are broken end the training
    compare: list[str] = Field(default=[])  # tokenizers to measure beside: folders, tokenizer.model or tokenizer.json
    tokenizer: TrainingSettings = Field(default_factory=TrainingSettings)
    sample: SampleSettings = Field(default_factory=SampleSettings)

    @field_validator("output")
    @classmethod
    def _named(cls, output: str) -> str:
        if not output.strip():
            raise ValueError("name the folder to write")
        return output


class Progress(Protocol):
    """Hears what is done, how much of it and of how much, and what was met so far."""

    def __call__(self, step: str, done: int, total: int, seen: str = "") -> None: ...


@dataclass
class Trained:
    """What came of a training. `compression` is by tokenizer, then by kind of text."""

    folder: Path
    documents: int = 0
    held_out: int = 0
    bad: int = 0
    sampled: dict[str, dict[str, int]] = field(default_factory=dict)
    compression: dict[str, dict[str, Compression]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        measured = {
            name: {kind: part.to_dict() for kind, part in parts.items()} for name, parts in self.compression.items()
        }
        return {
            "documents": self.documents,
            "held_out_documents": self.held_out,
            "bad_records": self.bad,
            "sample_bytes": self.sampled,
            "compression": measured,
            "published_rates": {
                "note": "of the first generation's README, which states neither unit nor text",
                "rates": PUBLISHED_RATES,
            },
        }


def train_tokenizer(recipe: TokenizerRecipe, progress: Progress = lambda *_, **__: None) -> Trained:
    """Samples, trains, writes, checks and measures.

    Raises ChuanError where the target is taken, a source or a tokenizer to compare with is not there, too many records
    are broken, or the texts are too few.
    """
    target = Path(os.path.abspath(os.path.expanduser(recipe.output)))
    check_free(target)
    files = find_files(recipe.sources, recipe.data)
    others = {name: load_tokenizer(name) for name in recipe.compare}
    with staged_folder(target) as folder:
        trained = Trained(target)
        sample, held_out = _read(recipe, files, folder, trained, progress)
        trained.sampled = {kind: {"seen": sample.seen[kind], "kept": sample.kept(kind)} for kind in KINDS}
        texts: dict[str, list[str]] = {LABELS[kind]: held_out.chunks(kind) for kind in KINDS}
        model_file = train_sentencepiece(sample, recipe.tokenizer, folder, progress)
        (folder / "tokenizer.model").write_bytes(model_file)
        roles = {"user_token_id": USER_ID, "assistant_token_id": ASSISTANT_ID}
        special_ids = {"pad_token_id": UNKNOWN_ID, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID}
        _save_json(folder / "generation_config.json", special_ids | roles)
        ours = load_tokenizer(folder)
        save_tokenizer(folder, ours, {"unk_token": "<unk>", "pad_token": "<unk>"})
        _check_json(folder, ours, texts)
        texts["digits"] = find_numbers(chunk for chunks in texts.values() for chunk in chunks)
        threads = recipe.tokenizer.threads or len(os.sched_getaffinity(0))
        tokenizers = {_OURS: ours} | others
        for done, (name, tokenizer) in enumerate(tokenizers.items()):
            progress("measuring", done, len(tokenizers))
            trained.compression[name] = measure_compression(tokenizer, texts, threads)
        progress("measuring", len(tokenizers), len(tokenizers))
        _save_json(folder / "compression.json", trained.to_dict())
        (folder / "recipe.toml").write_text(render_recipe(recipe), encoding="utf-8")
    return trained


def _read(
    recipe: TokenizerRecipe, files: list[SourceFile], folder: Path, trained: Trained, progress: Progress
) -> tuple[TextSample, TextSample]:
    """The sample to learn from, and one of the documents that are set aside."""
    sample = recipe.sample.build()
    held_out = TextSample(dict.fromkeys(KINDS, _HELD_OUT_BYTES), recipe.sample.seed)
    total, read, first_bad = sum(file.size for file in files), 0, ""
    with (folder / "bad.jsonl").open("w", encoding="utf-8") as bad_file:
        for file in files:
            for number, text in read_records(Piece(file)):
                if text is None:
                    continue
                if isinstance(text, Bad):
                    place = {"source": file.source.name, "file": file.name, "record": number, "what": text.what}
                    first_bad = first_bad or f"{file.path}, record {number}: {text.what}"
                    if trained.bad < _BAD_KEPT:
                        bad_file.write(json.dumps(place | {"shown": text.shown}, ensure_ascii=False) + "\n")
                    trained.bad += text.records
                    continue
                trained.documents += 1
                if trained.documents % 1000 == 0:
                    progress("reading", read, total, _describe(trained))
                if is_held_out(text, recipe.held_out):
                    trained.held_out += 1
                    held_out.add(text)
                else:
                    sample.add(text, file.source.weight)
            read += file.size
            progress("reading", read, total, _describe(trained))
    share = trained.bad / max(1, trained.bad + trained.documents)
    if trained.bad and share > recipe.max_bad_share:
        raise ChuanError(
            f"{trained.bad:,} of {trained.bad + trained.documents:,} records are bad ({share:.1%}, max_bad_share is "
            f"{recipe.max_bad_share:.1%}), the first is {first_bad}; mend the files, or raise max_bad_share"
        )
    if not trained.bad:
        (folder / "bad.jsonl").unlink()
    if not trained.documents:
        raise ChuanError(f"the {len(files)} files of the sources hold no text; name other sources")
    return sample, held_out


def is_held_out(text: str, one_in: int) -> bool:
    """Whether a document is set aside: by its text alone, so that copies of it are too."""
    digest = hashlib.blake2b(text.encode("utf-8", "ignore"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % one_in == 0


def _describe(trained: Trained) -> str:
    return f"{trained.documents:,} documents" + (f", {trained.bad:,} bad" if trained.bad else "")


def _check_json(folder: Path, ours: Tokenizer, texts: dict[str, list[str]]) -> None:
    """Opens `tokenizer.json` as another program would, and compares its ids on text that was not learned from."""
    if not (folder / "tokenizer.json").is_file():
        return
    other = load_tokenizer(folder / "tokenizer.json")
    for chunk in (chunk for chunks in texts.values() for chunk in chunks[:500]):
        ids = ours.encode(chunk)
        if other.encode(chunk) != ids or ours.decode(ids) != chunk.replace("▁", " "):
            raise ChuanError(
                f"the tokenizer that was trained is not the same in both of its files, on {chunk[:60]!r}; report this "
                "with the recipe"
            )


def _save_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
