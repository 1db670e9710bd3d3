"""The recipe of a corpus: sources and what is done to them, one table a part.

In: a TOML file. Out: a `CorpusRecipe` that was checked against the files it names, before any work.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from chuan.corpus.clean import CleanSettings
from chuan.corpus.decontaminate import DecontaminateSettings
from chuan.corpus.dedup import DedupSettings
from chuan.corpus.executors import ExecutorSettings
from chuan.corpus.mixture import MixtureSettings
from chuan.corpus.sources import SourceSettings
from chuan.corpus.tokenise import TokenSettings
from chuan.recipes import Settings, load_recipe


class CorpusRecipe(Settings):
    """What `chuan corpus build` reads. A part whose table is not there is not done; `clean` always is."""

    output: str  # the folder that is built
    data: str = "."  # the folder that paths of sources are relative to
    sources: list[SourceSettings] = Field(min_length=1)
    tasks: int = Field(default=8, ge=1)  # into how many a stage is cut; the output depends on it
    workers: int = Field(default=0, ge=0)  # how many run at a time: 0 is as many as there are cores. Changes no output
    seed: int = 0
    max_bad_share: float = Field(default=0.01, ge=0, le=1)  # of a source's records; more that are broken end the build
    executor: ExecutorSettings = Field(default_factory=ExecutorSettings)
    clean: CleanSettings = Field(default_factory=CleanSettings)
    dedup: DedupSettings | None = None
    decontaminate: DecontaminateSettings | None = None
    mixture: MixtureSettings = Field(default_factory=MixtureSettings)
    tokens: TokenSettings | None = None

    @field_validator("output")
    @classmethod
    def _named(cls, output: str) -> str:
        if not output.strip():
            raise ValueError("name the folder to build")
        if "://" in output:
            raise ValueError("it is a folder of a file system that all workers see, no address")
        return output

    @model_validator(mode="after")
    def _mixes_what_is_there(self) -> CorpusRecipe:
        if unknown := sorted(self.mixture.sources.keys() - {source.name for source in self.sources}):
            raise ValueError(f"mixture.sources names {unknown[0]}, which is no source of this recipe")
        return self


def load_corpus_recipe(path: str | Path, overrides: Sequence[str] = ()) -> CorpusRecipe:
    """Errors as of `load_recipe`."""
    return load_recipe(path, CorpusRecipe, overrides)


def count_workers(recipe: CorpusRecipe) -> int:
    """How many tasks run at a time; a cluster is asked for all of them, unless the recipe says how many."""
    on_this_machine = recipe.executor.kind == "local" or (recipe.executor.kind == "ray" and not recipe.executor.address)
    return min(recipe.workers or (len(os.sched_getaffinity(0)) if on_this_machine else recipe.tasks), recipe.tasks)
