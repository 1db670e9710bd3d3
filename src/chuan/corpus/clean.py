"""The first stage: files are read, written one way, told by language, judged by the rules, scrubbed.

In: the pieces of the sources. Out: folders `kept`, `rejected` (with a reason), `bad` and `counts`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from pydantic import Field

from chuan.corpus.boilerplate import drop_boilerplate
from chuan.corpus.language import LanguageDetector, LanguageSettings
from chuan.corpus.normalise import NormaliseSettings, build_simplifier, normalise
from chuan.corpus.offensive import OffensiveSettings, is_offensive
from chuan.corpus.readers import CorpusReader
from chuan.corpus.rules import RuleSettings, find_reason
from chuan.corpus.scrub import ScrubSettings, scrub
from chuan.corpus.sources import Piece
from chuan.corpus.stages import Stage, write_documents
from chuan.recipes import Settings


class CleanSettings(Settings):
    """What is done to each document by itself."""

    normalise: NormaliseSettings = Field(default_factory=NormaliseSettings)
    language: LanguageSettings = Field(default_factory=LanguageSettings)
    rules: RuleSettings = Field(default_factory=RuleSettings)
    scrub: ScrubSettings = Field(default_factory=ScrubSettings)
    offensive: OffensiveSettings = Field(default_factory=OffensiveSettings)


def clean_stages(settings: CleanSettings, pieces: list[list[Piece]], work: str) -> list[Stage]:
    """One stage: a task reads its pieces and leaves one file of documents that stay and one of those that do not."""
    steps = [CorpusReader(pieces, work), Clean(settings, f"{work}/rejected"), write_documents(f"{work}/kept")]
    return [Stage("clean", steps, len(pieces))]


class Clean(PipelineStep):
    """Changes documents in place; those that leave are written to `rejected` as they came."""

    type = "🔻 - FILTER"
    name = "Clean"

    def __init__(self, settings: CleanSettings, rejected: str) -> None:
        super().__init__()
        self.settings = settings
        self.rejected = rejected

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        cleaner = Cleaner(self.settings)
        with write_documents(self.rejected) as writer:
            for document in data:
                reason = cleaner.clean(document)
                if reason is None:
                    yield document
                else:
                    document.metadata["reason"] = reason
                    writer.write(document, rank)


class Cleaner:
    """The work on one document, with what has to be loaded for it."""

    def __init__(self, settings: CleanSettings) -> None:
        self.settings = settings
        self._languages = LanguageDetector()
        self._simplify = build_simplifier() if settings.normalise.simplify else None

    def clean(self, document: Document) -> str | None:
        """Changes the document; returns the reason why it leaves, or None."""
        settings, metadata = self.settings, document.metadata
        text = normalise(document.text) if settings.normalise.unicode else document.text
        language = metadata.get("language")
        if language is None:
            language, score = self._languages.detect(text)
            metadata["language"] = language
            if language not in settings.language.keep or score < settings.language.min_score:
                return "language:unsure" if language in settings.language.keep else f"language:{language}"
        if self._simplify is not None and language == "zh":
            text = self._simplify(text)
        if settings.rules.enabled:
            if settings.rules.boilerplate:
                text, dropped = drop_boilerplate(text, language)
                if dropped:
                    metadata["boilerplate"] = dropped
            reason = find_reason(text, language, settings.rules)
            if reason is not None:
                return reason
        if settings.offensive.enabled and is_offensive(text, language, settings.offensive):
            return "rule:offensive"
        if settings.scrub.kinds:
            text, found = scrub(text, settings.scrub.kinds)
            if found:
                metadata["scrubbed"] = found
        document.text = text
        return None
