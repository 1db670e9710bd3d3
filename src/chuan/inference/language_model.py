"""The loaded model that a user holds: chat, generate, logits, save.

In: text or messages. Out: text. Everything it needs was put together by `chuan.inference.load`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from torch import Tensor

from chuan.chat.formats import ChatFormat
from chuan.chat.messages import check_messages
from chuan.checkpoints.save import Extras, save_folder
from chuan.checkpoints.source import DecoderSource
from chuan.errors import ChuanError
from chuan.inference.engine import Engine
from chuan.inference.generation import Increment
from chuan.inference.runner import Runner
from chuan.inference.sampling import SamplingOptions
from chuan.model.decoder import Decoder
from chuan.tokenizer.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]


class LanguageModel:
    """A decoder with its runner, tokenizer, chat format (None for a base model) and defaults.

    Everything it computes goes through its `engine`, which others may use at the same time.
    """

    def __init__(
        self,
        name: str,
        decoder: Decoder,
        runner: Runner,
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
        self.engine = Engine(runner, tokenizer)

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
        request = self.engine.build_scoring(ids, len(ids))
        self.engine.complete([request])
        return request.logits

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
        prompt = self.chat_format.render(checked, self.engine.context_length, options.max_new_tokens)
        return self._stream(prompt, options, self.stop_ids | set(self.chat_format.stop_ids))

    def stream_text(self, prompt: str, options: SamplingOptions | None = None) -> Iterator[Increment]:
        """As `generate`, with the counts."""
        options = options if options is not None else self.defaults
        prompt_ids = [*self.tokenizer.prompt_prefix, *self.tokenizer.encode(prompt)]
        if not prompt_ids:
            raise ChuanError("the prompt is empty; give some text to continue")
        return self._stream(prompt_ids, options, self.stop_ids)

    def _stream(self, prompt_ids: list[int], options: SamplingOptions, stop_ids: frozenset[int]) -> Iterator[Increment]:
        # Built here, outside of the generator, so that a bad prompt fails where it is given.
        return self.engine.stream(self.engine.build_generation(prompt_ids, options, stop_ids))


def _texts(increments: Iterator[Increment]) -> Iterator[str]:
    return (increment.text for increment in increments if increment.text)
