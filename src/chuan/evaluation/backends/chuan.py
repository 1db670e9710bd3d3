"""Our own engine, at 16, 8 or 4 bits.

In: a loaded `LanguageModel`. Out: scores and replies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from chuan.chat.messages import check_messages
from chuan.checkpoints.catalogue import resolve_model
from chuan.errors import ChuanError
from chuan.evaluation.backends.backend import (
    GenerationOptions,
    GenerationPrompt,
    ModelFacts,
    choose_letters,
    render_letters,
)
from chuan.evaluation.backends.fingerprint import digest_weights
from chuan.evaluation.protocols import LetterForm
from chuan.evaluation.scoring import run_requests, score_letters
from chuan.inference.language_model import LanguageModel
from chuan.inference.request import Generation
from chuan.inference.sampling import SamplingOptions
from chuan.quantization.integer import IntegerLinear
from chuan.quantization.methods import find_bits

_ENDLESS = 1 << 40  # tokens


class ChuanBackend:
    """A `LetterBackend` over a model that `chuan.load` opened."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        weight = model.decoder.model.embed_tokens.weight
        integer = any(isinstance(module, IntegerLinear) for module in model.decoder.modules())
        self.facts = ModelFacts(
            model.name,
            "chuan",
            find_bits(model.decoder),
            "int8" if integer else str(weight.dtype).removeprefix("torch."),
            str(weight.device),
            count_parameters(model),
            weights_sha256=digest_weights(resolve_model(model.name)),
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

    def encode_chats(self, chats: Sequence[Sequence[Mapping[str, str]]]) -> list[list[int]]:
        chat_format = self._model.chat_format
        if chat_format is None:
            raise ChuanError(
                f"{self.facts.model} is a base model without a chat format; ask it by --mode base and letters"
            )
        # Without a limit: what is left out of a prompt that does not fit is the protocol's business.
        return [chat_format.render(check_messages(chat), _ENDLESS, 1) for chat in chats]

    def generate(self, prompts: Iterable[GenerationPrompt], options: GenerationOptions) -> Iterator[tuple[int, str]]:
        engine, chat_format = self._model.engine, self._model.chat_format
        chat_stops = frozenset(chat_format.stop_ids) if chat_format is not None else frozenset()

        def build(prompt: GenerationPrompt) -> Generation:
            if isinstance(prompt, str):
                (ids,), stop_ids = self.encode([prompt], True), self._model.stop_ids
            else:
                (ids,), stop_ids = self.encode_chats([prompt]), self._model.stop_ids | chat_stops
            sampling = SamplingOptions(
                temperature=options.temperature,
                seed=options.seed,
                stop=options.stop,
                max_new_tokens=max(1, min(options.max_new_tokens, engine.context_length - len(ids))),
            )
            return engine.build_generation(ids, sampling, stop_ids)

        for number, request in run_requests(engine, map(build, prompts)):
            yield number, "".join(increment.text for increment in request.increments)


def count_parameters(model: LanguageModel) -> int:
    """Weights of the whole network by its configuration, shared ones once, however many bits they have."""
    config = model.decoder.config
    width, heads = config.hidden_size, config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    layer = width * (2 * heads + 2 * keys) + 3 * width * config.intermediate_size + 2 * width
    tables = config.vocab_size * width * (1 if config.tie_word_embeddings else 2)
    return config.num_hidden_layers * layer + tables + width
