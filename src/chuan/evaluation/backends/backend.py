"""What an evaluation asks of whatever answers its questions.

In: prompts. Out: scores of letters, or replies. Results come in any order, each with the number of its prompt, as soon
as they are there, so that a killed run loses little.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from chuan.evaluation.protocols import LetterForm

# A text to continue, or messages ({"role": ..., "content": ...}) to answer.
GenerationPrompt = str | Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class ModelFacts:
    """What run.json says of the model. `bits`, `dtype`, `device` and `parameters` are None where nobody can know."""

    model: str
    backend: str
    bits: int | None = None
    dtype: str | None = None
    device: str | None = None
    parameters: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class GenerationOptions:
    """How replies are drawn; `stop` are texts that end one. Temperature 0 is greedy."""

    max_new_tokens: int
    temperature: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int = 0


class Backend(Protocol):
    """Anything that replies."""

    facts: ModelFacts

    def generate(self, prompts: Iterable[GenerationPrompt], options: GenerationOptions) -> Iterator[tuple[int, str]]:
        """(number of the prompt, reply) as they come."""
        ...


@runtime_checkable
class LetterBackend(Backend, Protocol):
    """A model whose logits are at hand."""

    context_length: int

    def encode(self, texts: Sequence[str], bos: bool) -> list[list[int]]:
        """Token ids; with `bos`, those that the model expects before a prompt come first."""
        ...

    def find_letters(self, form: LetterForm) -> list[int]:
        """The ids of A, B, C, D. Raises ChuanError where they are not four different ones."""
        ...

    def score_letters(
        self, prompts: Iterable[Sequence[int]], letter_ids: Sequence[int]
    ) -> Iterator[tuple[int, list[float]]]:
        """(number of the prompt, the logits of the letters after its last token) as they come."""
        ...
