"""The last stages: documents become token ids, are mixed, and are written as shards.

In: a folder of documents, a tokenizer, how often each source is taken. Out: a folder of shards with its manifest. A
document's split, its copies and its place depend on its text and the seed alone. What is in memory at a time is one
batch of documents, and then one shard.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from pydantic import Field

from chuan.corpus.shard_format import (
    FORMAT_VERSION,
    INDEX_DTYPE,
    SPLITS,
    GroupCount,
    Manifest,
    ShardEntry,
    Split,
    SplitEntry,
    TokenizerEntry,
    choose_dtype,
    hash_file,
    save_manifest,
    write_shard,
)
from chuan.corpus.stages import Stage, read_documents
from chuan.errors import ChuanError
from chuan.recipes import Settings
from chuan.staging import staged_file
from chuan.tokenizer.folder import load_tokenizer

# A document on its way to a shard; `key` is its place among the others.
_ROW = np.dtype(
    [("key", "<u8"), ("hash", "<u8"), ("length", "<i8"), ("source", "<u2"), ("language", "<u2"), ("copy", "<u4")]
)
_BATCH = 256  # documents
_SPACE = float(1 << 64)


class TokenSettings(Settings):
    """Which tokenizer, and how the shards are cut."""

    tokenizer: str  # a folder, or a tokenizer.model or tokenizer.json
    shards: int = Field(default=8, ge=1)  # of the training split; one at a time is held in memory
    validation_share: float = Field(default=0.005, ge=0, lt=1)  # of the documents, by the hash of their text


def token_stages(
    settings: TokenSettings,
    weights: Mapping[str, Mapping[str, float]],
    recipe: dict[str, Any],
    source: str,
    work: str,
    shards: str,
    tasks: int,
) -> list[Stage]:
    """The stages from the documents in `source` to the folder `shards`.

    `weights`: how often a document is taken, by source and language: 0.25 is every fourth document, 2.5 is each twice
    and every second a third time. `recipe` goes into the manifest as it is. Raises ChuanError for a tokenizer that
    cannot serve.
    """
    entry = describe_tokenizer(settings.tokenizer)
    dtype = choose_dtype(entry.vocab_size)
    seed = int(recipe.get("seed", 0))
    plain = {name: dict(by_language) for name, by_language in weights.items()}
    languages = list(dict.fromkeys(language for by_language in plain.values() for language in by_language))
    encode = Tokenise(settings, plain, languages, entry.eos_id, seed, dtype, work)
    gather = WriteShards(settings, list(plain), languages, dtype, work, shards)
    finish = WriteManifest(settings, plain, languages, entry, recipe, work, shards)
    return [
        Stage("tokens", [read_documents(source), encode], tasks),
        Stage("shards", [gather], settings.shards + 1),
        Stage("manifest", [finish], 1),
    ]


def describe_tokenizer(path: str) -> TokenizerEntry:
    """What the manifest says of a tokenizer. Raises ChuanError where it has no id that ends a document."""
    tokenizer = load_tokenizer(path)
    if tokenizer.eos_id is None:
        raise ChuanError(f"{path} has no end-of-text token, which every document of a corpus ends with; use another")
    file = Path(path).expanduser()
    if file.is_dir():
        file = next(file / name for name in ("tokenizer.model", "tokenizer.json") if (file / name).is_file())
    return TokenizerEntry(
        file=file.name, sha256=hash_file(file), vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id
    )


class Tokenise(PipelineStep):
    """Encodes documents, and lays each beside the others of its shard: `tokens/SHARD/RANK.ids` and `.rows`."""

    type = "Tokens"
    name = "Tokenise"

    def __init__(
        self,
        settings: TokenSettings,
        weights: dict[str, dict[str, float]],
        languages: list[str],
        eos_id: int,
        seed: int,
        dtype: str,
        work: str,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.weights = weights
        self.languages = languages
        self.eos_id = eos_id
        self.seed = seed
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.work = work

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        tokenizer = load_tokenizer(self.settings.tokenizer)
        sources = {name: number for number, name in enumerate(self.weights)}
        languages = {name: number for number, name in enumerate(self.languages)}
        with ExitStack() as stack:
            files = []
            for shard in range(self.settings.shards + 1):
                ids, rows = _part_paths(self.work, shard, rank)
                ids.parent.mkdir(parents=True, exist_ok=True)
                files.append((stack.enter_context(ids.open("wb")), stack.enter_context(rows.open("wb"))))
            for batch in _batches(data):
                encoded = tokenizer.encode_batch([document.text for document in batch])
                for document, token_ids in zip(batch, encoded, strict=True):
                    tokens = np.array([*token_ids, self.eos_id], self.dtype).tobytes()
                    source, language = document.metadata["source"], document.metadata["language"]
                    text_hash = xxhash.xxh3_64_intdigest(document.text.encode("utf-8"))
                    for shard, key, copy in self._place(text_hash, self.weights[source][language]):
                        row = (key, text_hash, len(token_ids) + 1, sources[source], languages[language], copy)
                        files[shard][0].write(tokens)
                        files[shard][1].write(np.array([row], _ROW).tobytes())

    def _place(self, text_hash: int, weight: float) -> Iterator[tuple[int, int, int]]:
        """The shard, the key and the number of each copy; the last shard is the validation split, without copies."""
        if _hash(text_hash, "split") < self.settings.validation_share * _SPACE:
            yield self.settings.shards, _hash(text_hash, "place", self.seed), 0
            return
        whole = math.floor(weight)
        copies = whole + (_hash(text_hash, "copies", self.seed) < (weight - whole) * _SPACE)
        for copy in range(copies):
            key = _hash(text_hash, "place", self.seed, copy)
            yield _hash(key, "shard") % self.settings.shards, key, copy


class WriteShards(PipelineStep):
    """Puts the documents of one shard in the order of their keys: a shuffle that every run repeats."""

    type = "Tokens"
    name = "Shards"

    def __init__(
        self, settings: TokenSettings, sources: list[str], languages: list[str], dtype: str, work: str, shards: str
    ) -> None:
        super().__init__()
        self.settings = settings
        self.sources = sources
        self.languages = languages
        self.dtype = dtype
        self.work = work
        self.shards = shards

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        parts = sorted(_part_paths(self.work, rank, 0)[0].parent.glob("*.ids"))
        rows = np.concatenate([np.fromfile(path.with_suffix(".rows"), _ROW) for path in parts])
        ids = np.concatenate([np.fromfile(path, np.dtype(self.dtype).newbyteorder("<")) for path in parts])
        ends = np.cumsum(rows["length"])
        # Texts that are the same have the same key: any order of theirs gives the same tokens, the source decides.
        order = np.lexsort((rows["language"], rows["source"], rows["copy"], rows["hash"], rows["key"]))
        index = np.empty(len(rows), INDEX_DTYPE)
        index["end"] = np.cumsum(rows["length"][order])
        for name in ("hash", "source", "language", "copy"):
            index[name] = rows[name][order]
        split, number = self.locate(rank)
        folder = Path(self.shards)
        folder.mkdir(parents=True, exist_ok=True)
        documents = (ids[ends[place] - rows["length"][place] : ends[place]] for place in order)
        entry = write_shard(folder, split, number, index, documents, self.dtype)
        groups = Counter(zip(rows["source"].tolist(), rows["language"].tolist(), strict=True))
        tokens: Counter[tuple[int, int]] = Counter()
        for source, language, length in rows[["source", "language", "length"]].tolist():
            tokens[source, language] += length
        counts = [
            GroupCount(
                source=self.sources[source],
                language=self.languages[language],
                documents=groups[source, language],
                tokens=tokens[source, language],
            ).model_dump()
            for source, language in sorted(groups)
        ]
        with staged_file(_entry_path(self.work, rank)) as path:
            path.write_text(json.dumps({"shard": entry.model_dump(), "groups": counts}), encoding="utf-8")

    def locate(self, rank: int) -> tuple[Split, int]:
        """The split and the number of the shard that a task writes."""
        return ("train", rank) if rank < self.settings.shards else ("validation", 0)


class WriteManifest(PipelineStep):
    """Adds up what the shards hold, and says that the folder is finished."""

    type = "Tokens"
    name = "Manifest"

    def __init__(
        self,
        settings: TokenSettings,
        weights: dict[str, dict[str, float]],
        languages: list[str],
        tokenizer: TokenizerEntry,
        recipe: dict[str, Any],
        work: str,
        shards: str,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.weights = weights
        self.languages = languages
        self.tokenizer = tokenizer
        self.recipe = recipe
        self.work = work
        self.shards = shards

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        entries = [
            json.loads(_entry_path(self.work, shard).read_text(encoding="utf-8"))
            for shard in range(self.settings.shards + 1)
        ]
        by_split = dict(zip(SPLITS, (entries[:-1], entries[-1:]), strict=True))
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            dtype=choose_dtype(self.tokenizer.vocab_size),
            tokenizer=self.tokenizer,
            sources=list(self.weights),
            languages=self.languages,
            splits={split: _add_up(found) for split, found in by_split.items()},
            mixture={"weights": self.weights},
            recipe=self.recipe,
        )
        save_manifest(Path(self.shards), manifest)


def _add_up(entries: Sequence[dict[str, Any]]) -> SplitEntry:
    shards = [ShardEntry.model_validate(entry["shard"]) for entry in entries]
    documents: Counter[tuple[str, str]] = Counter()
    tokens: Counter[tuple[str, str]] = Counter()
    for group in (group for entry in entries for group in entry["groups"]):
        documents[group["source"], group["language"]] += group["documents"]
        tokens[group["source"], group["language"]] += group["tokens"]
    return SplitEntry(
        documents=sum(shard.documents for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        groups=[
            GroupCount(source=source, language=language, documents=count, tokens=tokens[source, language])
            for (source, language), count in sorted(documents.items())
        ],
        shards=shards,
    )


def _batches(data: Any) -> Iterator[list[Document]]:
    batch: list[Document] = []
    for document in data:
        batch.append(document)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    yield batch


def _hash(value: int, *what: str | int) -> int:
    """A number below 2**64 that looks like any other."""
    return xxhash.xxh3_64_intdigest(f"{value} {what}".encode())


def _part_paths(work: str, shard: int, rank: int) -> tuple[Path, Path]:
    folder = Path(work, "parts", f"{shard:05d}")
    return folder / f"{rank:05d}.ids", folder / f"{rank:05d}.rows"


def _entry_path(work: str, shard: int) -> Path:
    return Path(work, "entries", f"{shard:05d}.json")
