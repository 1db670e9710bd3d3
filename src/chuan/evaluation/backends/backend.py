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
    """What run.json says of the model; all but the first two are None where nobody can know.

    dtype: what activations are computed in, "int8" where that is integer arithmetic. weights_sha256: of samples of the
    files (`digest_weights`).
    """

    model: str
    backend: str
    bits: int | None = None
    dtype: str | None = None
    device: str | None = None
    parameters: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    weights_sha256: str | None = None


@dataclass(frozen=True)
class GenerationOptions:
    """How replies are drawn; `stop` are texts that end one. Temperature 0 is greedy."""

    max_new_tokens: int
    temperature: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Reply:
    """A text, and what it cost in tokens; `is_cached` where it was not asked for again."""

    text: str
    input_tokens: int
    output_tokens: int
    is_cached: bool = False


class Backend(Protocol):
    """Anything that replies."""

    facts: ModelFacts

    def generate(self, prompts: Iterable[GenerationPrompt], options: GenerationOptions) -> Iterator[tuple[int, str]]:
        """(number of the prompt, reply) as they come."""
        ...


@runtime_checkable
class PaidBackend(Backend, Protocol):
    """A model that is paid for by the token, and of which nothing but its replies is known."""

    def ask(self, prompts: Iterable[GenerationPrompt], options: GenerationOptions) -> Iterator[tuple[int, Reply]]:
        """As `generate`, with the tokens that were paid for."""
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


@runtime_checkable
class ChatLetterBackend(LetterBackend, Protocol):
    """A model that letters can be read off as the beginning of its answer to a conversation."""

    def encode_chats(self, chats: Sequence[Sequence[Mapping[str, str]]]) -> list[list[int]]:
        """Conversations up to where the answer begins. Raises ChuanError for a model without a chat format."""
        ...

    def find_chat_letters(self) -> list[int]:
        """The ids with which answers begin that are A, B, C, D. Raises ChuanError where they are not four."""
        ...
