"""The mixture of a corpus: how often a document of a source in a language is taken.

In: the weights of the sources, and the recipe's table `mixture`. Out: a weight for each source and each language.
`chuan corpus mix` finds such a table; any other way of choosing one serves as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from chuan.corpus.sources import SourceSettings
from chuan.recipes import Settings

Factor = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class MixtureSettings(Settings):
    """What a source's `weight` is multiplied by; 1 for what is not named, and 0 leaves it out."""

    sources: dict[str, Factor] = Field(default_factory=dict)
    languages: dict[Literal["zh", "en"], Factor] = Field(default_factory=dict)


def weigh(
    settings: MixtureSettings, sources: Sequence[SourceSettings], languages: Sequence[str]
) -> dict[str, dict[str, float]]:
    """How often a document is taken, by its source and its language."""
    by_language = {str(language): factor for language, factor in settings.languages.items()}
    return {
        source.name: {
            language: source.weight * settings.sources.get(source.name, 1.0) * by_language.get(language, 1.0)
            for language in languages
        }
        for source in sources
    }
