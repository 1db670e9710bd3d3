"""Decontamination: the questions of benchmarks are taken out of the corpus.

In: a folder of documents, and the benchmarks with the folders of their data. Out: `kept`, `rejected`, `cut` (what was
taken out of documents that stay) and `matches`: document, benchmark, subject, question and how much of it was found.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from pydantic import Field, field_validator

from chuan.corpus.benchmark_index import (
    BenchmarkIndex,
    IndexSettings,
    Match,
    build_index,
    split_plain_tokens,
)
from chuan.corpus.stages import Stage, read_documents, write_documents
from chuan.errors import ChuanError
from chuan.recipes import Settings
from chuan.tasks.benchmarks import find_benchmark, load_questions
from chuan.tasks.question import Question


class BenchmarkSettings(Settings):
    """A benchmark and where its data lie; no splits or subjects named means all."""

    name: str
    data: str
    splits: list[str] = Field(default_factory=list)
    subjects: list[str] = Field(default_factory=list)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            return find_benchmark(name).name
        except ChuanError as error:
            raise ValueError(str(error)) from None


class DecontaminateSettings(IndexSettings):
    """Which questions are looked for, and what happens to documents that hold one."""

    benchmarks: list[BenchmarkSettings] = Field(min_length=1)
    # Of the runs of a question's stem, of its stem with its options, or of its passage. One run of a long question is
    # mostly a quotation that both took from elsewhere, so half of them is asked for.
    min_share: float = Field(default=0.5, gt=0, le=1)
    margin: int = Field(default=200, ge=0)  # characters around a find that go with it (GPT-3, appendix C)
    max_share: float = Field(default=0.3, ge=0, le=1)  # of a document that may go so; beyond, the whole of it leaves
    min_left: int = Field(default=200, ge=0)  # characters: a shorter rest leaves too (GPT-3, appendix C)


def decontaminate_stages(settings: DecontaminateSettings, source: str, work: str, tasks: int) -> list[Stage]:
    """The stages from `source` to `work`/kept and `work`/rejected.

    Raises ChuanError where a benchmark's data are missing or damaged, before anything runs.
    """
    for benchmark in settings.benchmarks:
        _load(benchmark)
    clean = [read_documents(source), Decontaminate(settings, work), write_documents(f"{work}/kept")]
    return [Stage("decontaminate-index", [BuildIndex(settings, work)], 1), Stage("decontaminate", clean, tasks)]


class BuildIndex(PipelineStep):
    """One task: reads the benchmarks and writes `index`."""

    type = "Decontaminate"
    name = "Index"

    def __init__(self, settings: DecontaminateSettings, folder: str) -> None:
        super().__init__()
        self.settings = settings
        self.folder = Path(folder)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        questions = [question for benchmark in self.settings.benchmarks for question in _load(benchmark)]
        build_index(questions, self.settings, self.folder / "index")


class Decontaminate(PipelineStep):
    """Sorts documents into those that stay, whole or cut, and those that leave."""

    type = "Decontaminate"
    name = "Search"

    def __init__(self, settings: DecontaminateSettings, folder: str) -> None:
        super().__init__()
        self.settings = settings
        self.folder = Path(folder)

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        index = BenchmarkIndex(self.folder / "index")
        (self.folder / "matches").mkdir(parents=True, exist_ok=True)
        with (
            (self.folder / "matches" / f"{rank:05d}.jsonl").open("w", encoding="utf-8") as list_of_matches,
            write_documents(f"{self.folder}/rejected") as rejected,
            write_documents(f"{self.folder}/cut") as cuts,
        ):
            for document in data:
                matches, ranges = index.find(document.text, self.settings.min_share)
                if not matches:
                    yield document
                    continue
                for match in matches:
                    list_of_matches.write(_render_match(document.id, match))
                best = max(matches, key=lambda match: (match.share, match.runs))
                document.metadata["contamination"] = f"{best.benchmark} {best.subject} {best.split} {best.question}"
                reason = f"contaminated:{best.benchmark}"
                stays, cut = cut_lines(document.text, ranges, self.settings.margin)
                if len(cut) > self.settings.max_share * len(document.text) or len(stays) < self.settings.min_left:
                    document.metadata["reason"] = reason
                    rejected.write(document, rank)
                    continue
                cuts.write(Document(cut, document.id, metadata={**document.metadata, "reason": f"cut:{reason}"}), rank)
                document.text = stays
                yield document


def cut_lines(text: str, ranges: list[tuple[int, int]], margin: int) -> tuple[str, str]:
    """A text without the lines that hold tokens of the ranges or lie within `margin` characters of one; and those."""
    lines = text.splitlines(keepends=True)
    ends = np.cumsum([len(split_plain_tokens(line)) for line in lines])
    gone = np.zeros(len(lines), bool)
    for start, end in ranges:
        # The first line that ends behind the first token, to the one that holds the last.
        gone[np.searchsorted(ends, start, "right") : np.searchsorted(ends, end, "left") + 1] = True
    stops = np.cumsum([len(line) for line in lines])
    starts = stops - [len(line) for line in lines]
    near = gone.copy()
    for i in np.flatnonzero(gone):
        near |= (starts < stops[i] + margin) & (stops > starts[i] - margin)
    stays = "".join(line for line, leaves in zip(lines, near, strict=True) if not leaves)
    return stays.strip("\n"), "".join(line for line, leaves in zip(lines, near, strict=True) if leaves)


def _load(benchmark: BenchmarkSettings) -> list[Question]:
    splits = benchmark.splits or find_benchmark(benchmark.name).splits
    subjects = benchmark.subjects or None
    return [q for split in splits for q in load_questions(benchmark.name, benchmark.data, subjects, split)]


def _render_match(document: str, match: Match) -> str:
    fields = {
        "document": document,
        "benchmark": match.benchmark,
        "subject": match.subject,
        "split": match.split,
        "question": match.question,
        "part": match.part,
        "matched": match.matched,
        "runs": match.runs,
    }
    return json.dumps(fields, ensure_ascii=False) + "\n"
