"""What an evaluation asks of whatever answers its questions.

In: prompts. Out: scores of letters, or replies. Results come in any order, each with the number of its prompt, as soon
as they are there, so that a killed run loses little.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from chuan.errors import ChuanError
from chuan.evaluation.protocols import LetterForm

_LETTERS = "ABCD"

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
        """Conversations up to where the answer begins, or with the answer where it is the last message.

        Raises ChuanError for a model without a chat format.
        """
        ...


def render_letters(form: LetterForm) -> list[str]:
    """The texts whose last ids are those of the letters."""
    # Behind a colon, so that a tokenizer which puts a blank before every text does not put a second one.
    return [letter if form == "bare" else f"Answer: {letter}" for letter in _LETTERS]


def choose_letters(encoded: Sequence[Sequence[int]], model: str) -> list[int]:
    """The last id of each; four different ones, or the letters cannot be told apart."""
    found = [ids[-1] for ids in encoded if ids]
    if len(set(found)) != len(_LETTERS):
        raise ChuanError(f"the tokenizer of {model} has no token for each of A, B, C, D: letters cannot be read off it")
    return found


def find_chat_letters(backend: ChatLetterBackend) -> list[int]:
    """The ids with which answers begin that are A, B, C, D. Raises ChuanError where they are not four different ones.

    Wherever a format puts blanks and marks: what stands where the answer begins once it is there.
    """
    question = {"role": "user", "content": "?"}
    answers = [[question, {"role": "assistant", "content": letter}] for letter in _LETTERS]
    prompt, *answered = backend.encode_chats([[question], *answers])
    if any(ids[: len(prompt)] != prompt for ids in answered):
        raise ChuanError(
            f"the chat format of {backend.facts.model} does not say where an answer begins; use --mode base"
        )
    return choose_letters([ids[len(prompt) :][:1] for ids in answered], backend.facts.model)
