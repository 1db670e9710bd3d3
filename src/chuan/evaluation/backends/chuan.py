"""Our own engine, at 16, 8 or 4 bits.

In: a loaded `LanguageModel`. Out: scores and replies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from chuan.errors import ChuanError
from chuan.evaluation.backends.backend import GenerationOptions, GenerationPrompt, ModelFacts
from chuan.evaluation.protocols import LetterForm
from chuan.evaluation.scoring import score_letters
from chuan.inference.language_model import LanguageModel
from chuan.quantization.methods import find_bits

LETTERS = ("A", "B", "C", "D")


class ChuanBackend:
    """A `LetterBackend` over a model that `chuan.load` opened."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        weight = model.decoder.model.embed_tokens.weight
        bits = find_bits(model.decoder)
        self.facts = ModelFacts(
            model.name,
            "chuan",
            bits,
            str(weight.dtype).removeprefix("torch.") if bits == 16 else f"int{bits}",
            str(weight.device),
            count_parameters(model),
        )
        self.context_length = model.engine.context_length

    def encode(self, texts: Sequence[str], bos: bool) -> list[list[int]]:
        prefix = list(self._model.tokenizer.prompt_prefix) if bos else []
        return [prefix + ids for ids in self._model.tokenizer.encode_batch(texts)]

    def find_letters(self, form: LetterForm) -> list[int]:
        return choose_letters(self._model.tokenizer.encode_batch(render_letters(form)), self.facts.model)

    def score_letters(
        self, prompts: Iterable[Sequence[int]], letter_ids: Sequence[int]
    ) -> Iterator[tuple[int, list[float]]]:
        return score_letters(self._model.engine, prompts, letter_ids)

    def generate(self, prompts: Iterable[GenerationPrompt], options: GenerationOptions) -> Iterator[tuple[int, str]]:
        raise NotImplementedError


def render_letters(form: LetterForm) -> list[str]:
    """The texts whose last ids are those of the letters."""
    # Behind a colon, so that a tokenizer which puts a blank before every text does not put a second one.
    return [letter if form == "bare" else f"Answer: {letter}" for letter in LETTERS]


def choose_letters(encoded: Sequence[Sequence[int]], model: str) -> list[int]:
    """The last id of each; four different ones, or the letters cannot be told apart."""
    found = [ids[-1] for ids in encoded if ids]
    if len(set(found)) != len(LETTERS):
        raise ChuanError(f"the tokenizer of {model} has no token for each of A, B, C, D; score it by --mode chat")
    return found


def count_parameters(model: LanguageModel) -> int:
    """Weights of the whole network by its configuration, shared ones once, however many bits they have."""
    config = model.decoder.config
    width, heads = config.hidden_size, config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    layer = width * (2 * heads + 2 * keys) + 3 * width * config.intermediate_size + 2 * width
    tables = config.vocab_size * width * (1 if config.tie_word_embeddings else 2)
    return config.num_hidden_layers * layer + tables + width
