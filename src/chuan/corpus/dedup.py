"""De-duplication: documents that are the same or nearly, then passages that stand in several documents.

In: a folder of documents. Out: `kept` and `rejected` under the folder of the work; a document that lost passages has
their share of it in its metadata, and what was cut stands in `cut`. Six stages; only the last one writes texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashDedupBuckets
from pydantic import Field

from chuan.corpus.near_duplicates import (
    FindClusters,
    NearDuplicateSettings,
    Removals,
    WriteSignatures,
    minhash_config,
)
from chuan.corpus.repeated_passages import (
    FindRepeats,
    Passages,
    RepeatedPassageSettings,
    Repeats,
    WritePassages,
)
from chuan.corpus.shingles import ShingleHasher
from chuan.corpus.stages import Stage, read_documents, write_documents
from chuan.recipes import Settings

_BUFFERED = 1000  # lines of a bucket file read at a time; datatrove's five are five system calls a kilobyte


class DedupSettings(Settings):
    """What is looked for. Texts that are the same but for blanks always leave."""

    near: NearDuplicateSettings = Field(default_factory=NearDuplicateSettings)
    passages: RepeatedPassageSettings = Field(default_factory=RepeatedPassageSettings)


def dedup_stages(settings: DedupSettings, source: str, work: str, tasks: int) -> list[Stage]:
    """The stages from `source` to `work`/kept and `work`/rejected."""
    config = minhash_config(settings.near)
    pairs = MinhashDedupBuckets(f"{work}/buckets", f"{work}/pairs", config=config, lines_to_buffer=_BUFFERED)
    stages = [
        Stage("dedup-signatures", [read_documents(source), WriteSignatures(settings.near, work)], tasks),
        Stage("dedup-pairs", [pairs], config.num_buckets),
        Stage("dedup-clusters", [FindClusters(settings.near, work)], 1),
    ]
    if settings.passages.enabled:
        stages += [
            Stage("dedup-passages", [read_documents(source), WritePassages(settings.passages, work)], tasks),
            Stage("dedup-repeats", [FindRepeats(work)], tasks),
        ]
    drop = DropRepeated(settings.passages, work)
    return [*stages, Stage("dedup", [read_documents(source), drop, write_documents(f"{work}/kept")], tasks)]


class DropRepeated(PipelineStep):
    """Sorts documents into those that stay, whole or cut, and those that leave."""

    type = "Dedup"
    name = "Drop"

    def __init__(self, settings: RepeatedPassageSettings, folder: str) -> None:
        super().__init__()
        self.settings = settings
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        removals, repeats, hasher = Removals(self.folder, rank), Repeats(self.folder, rank), ShingleHasher()
        with write_documents(f"{self.folder}/rejected") as rejected, write_documents(f"{self.folder}/cut") as cuts:
            for position, document in enumerate(data):
                if removed := removals.take(position):
                    document.metadata.update(removed)
                    rejected.write(document, rank)
                    continue
                places = repeats.find(position)
                if not len(places):
                    yield document
                    continue
                passages = Passages(document.text, self.settings.min_bytes, hasher)
                stays, cut, share = passages.cut(places)
                document.metadata["cut_share"] = round(share, 4)
                if share > self.settings.max_share or len(stays.encode("utf-8", "replace")) < self.settings.min_left:
                    document.metadata["reason"] = "repeated_paragraphs"
                    rejected.write(document, rank)
                    continue
                document.text = stays
                cuts.write(Document(cut, document.id, metadata={**document.metadata, "reason": "cut:repeated"}), rank)
                yield document
