"""The loaded model that a user holds: chat, generate, logits, save.

In: text or messages. Out: text. Everything it needs was put together by `chuan.inference.load`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from chuan.chat.formats import ChatFormat
from chuan.chat.messages import check_messages
from chuan.checkpoints.save import Extras, save_folder
from chuan.checkpoints.source import DecoderSource
from chuan.errors import ChuanError
from chuan.inference.generation import Increment, Prefix, check_ids, fit_length, stream_answer
from chuan.inference.sampling import SamplingOptions
from chuan.model.decoder import Decoder
from chuan.model.kv_cache import KVCache
from chuan.tokenizer.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]


class LanguageModel:
    """A decoder with its tokenizer, its chat format (None for a base model) and its defaults."""

    def __init__(
        self,
        name: str,
        decoder: Decoder,
        tokenizer: Tokenizer,
        chat_format: ChatFormat | None,
        defaults: SamplingOptions,
        stop_ids: frozenset[int],
        extras: Extras,
    ) -> None:
        self.name = name
        self.decoder = decoder
        self.tokenizer = tokenizer
        self.chat_format = chat_format
        self.defaults = defaults
        self.stop_ids = stop_ids
        self.extras = extras
        self._prefix: Prefix | None = None

    @overload
    def chat(self, messages: Messages, stream: Literal[False] = False, **options: Any) -> str: ...

    @overload
    def chat(self, messages: Messages, stream: Literal[True], **options: Any) -> Iterator[str]: ...

    def chat(self, messages: Messages, stream: bool = False, **options: Any) -> str | Iterator[str]:
        """The answer to a conversation, whole, or with `stream=True` in increments of whole characters.

        Options are those of `SamplingOptions` and override the model's own defaults. `messages` is not changed.
        Raises PromptTooLongError, with the number of tokens too many, where the conversation does not fit.
        """
        pieces = self.stream_chat(messages, self.defaults.replace(**options))
        return _texts(pieces) if stream else "".join(_texts(pieces))

    @overload
    def generate(self, prompt: str, stream: Literal[False] = False, **options: Any) -> str: ...

    @overload
    def generate(self, prompt: str, stream: Literal[True], **options: Any) -> Iterator[str]: ...

    def generate(self, prompt: str, stream: bool = False, **options: Any) -> str | Iterator[str]:
        """The continuation of a text, without the text itself; options as for `chat`."""
        pieces = self.stream_text(prompt, self.defaults.replace(**options))
        return _texts(pieces) if stream else "".join(_texts(pieces))

    def logits(self, token_ids: Sequence[int] | Tensor) -> Tensor:
        """(T,) ids -> (T, V) float32 logits on the CPU; row t predicts token t + 1."""
        ids = [int(token_id) for token_id in token_ids]
        check_ids(ids, self.decoder.config.vocab_size)
        if len(ids) > self.decoder.config.context_length:
            raise ChuanError(f"{len(ids)} tokens do not fit a context of {self.decoder.config.context_length}")
        with torch.inference_mode():
            batch = torch.tensor([ids], device=self.decoder.model.embed_tokens.weight.device)
            return self.decoder(batch)[0].float().cpu().clone()

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes a standard Llama folder in the precision the model has; whole, or not at all."""
        save_folder(folder, DecoderSource(self.decoder), self.tokenizer, self.extras)
        return Path(folder)

    def stream_chat(self, messages: Messages, options: SamplingOptions | None = None) -> Iterator[Increment]:
        """As `chat`, with the counts; None is the model's own defaults. Errors come at once, not at the first item."""
        options = options if options is not None else self.defaults
        if self.chat_format is None:
            raise ChuanError(
                f"{self.name} is a base model without a chat format: use generate (`chuan generate`) to continue a text"
            )
        checked = check_messages(messages)
        prompt = self.chat_format.render(checked, self.decoder.config.context_length, options.max_new_tokens)
        return self._stream(prompt, options, self.stop_ids | set(self.chat_format.stop_ids))

    def stream_text(self, prompt: str, options: SamplingOptions | None = None) -> Iterator[Increment]:
        """As `generate`, with the counts."""
        options = options if options is not None else self.defaults
        prompt_ids = [*self.tokenizer.prompt_prefix, *self.tokenizer.encode(prompt)]
        if not prompt_ids:
            raise ChuanError("the prompt is empty; give some text to continue")
        return self._stream(prompt_ids, options, self.stop_ids)

    def _stream(self, prompt_ids: list[int], options: SamplingOptions, stop_ids: frozenset[int]) -> Iterator[Increment]:
        # Checked here, outside of the generator, so that a bad prompt fails where it is given.
        check_ids(prompt_ids, self.decoder.config.vocab_size)
        fit_length(len(prompt_ids), options.max_new_tokens, self.decoder.config.context_length)
        return self._run(prompt_ids, options, stop_ids)

    def _run(self, prompt_ids: list[int], options: SamplingOptions, stop_ids: frozenset[int]) -> Iterator[Increment]:
        # The cache is taken while an answer runs: a second answer at the same time gets one of its own.
        prefix, self._prefix = self._prefix, None
        if prefix is None:
            prefix = Prefix(KVCache(self.decoder.config))
        try:
            yield from stream_answer(self.decoder, self.tokenizer, prompt_ids, options, stop_ids, prefix)
        finally:
            self._prefix = prefix


def _texts(increments: Iterator[Increment]) -> Iterator[str]:
    return (increment.text for increment in increments if increment.text)
