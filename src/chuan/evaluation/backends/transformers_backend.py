"""Any causal language model that transformers opens, by its own code and in its own arithmetic.

In: a hub id or a folder. Out: scores and replies. Code of the model's folder runs only where the user said so; pickled
weights are read as weights alone, which is how transformers reads them. Control strings in a text are control tokens
here, as for everybody who uses that library. Letters: B prompts, T tokens of the longest, V vocabulary.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import torch
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import cached_file

from chuan.errors import ChuanError, first_line
from chuan.evaluation.backends.backend import (
    GenerationOptions,
    GenerationPrompt,
    ModelFacts,
    choose_letters,
    render_letters,
)
from chuan.evaluation.backends.fingerprint import digest_weights
from chuan.evaluation.protocols import LetterForm
from chuan.inference.device import choose_device, choose_dtype

# Prompts that wait together to be sorted by length, and tokens of one batch with what fills it up.
_WINDOW, _BATCH_TOKENS = 64, 8192
# Where configurations say how far a model sees; with ALiBi some say nothing, and have no end of their own.
_LENGTHS = ("max_position_embeddings", "max_seq_len", "seq_length")


class TransformersBackend:
    """A `ChatLetterBackend` over `AutoModelForCausalLM`; `device` and `dtype` as for `chuan.load`.

    Raises ChuanError where nothing can be opened, and for a model with code of its own that is not trusted.
    """

    def __init__(self, name: str, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False) -> None:
        self._device = choose_device(device)
        chosen = choose_dtype(dtype, self._device)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
            model = AutoModelForCausalLM.from_pretrained(name, dtype=chosen, trust_remote_code=trust_remote_code)
        except ChuanError:
            raise
        except Exception as error:  # a broken file, or another's code: there is no end of what they raise
            raise ChuanError(_explain(name, error)) from None
        self._model = model.to(self._device).eval()
        config = model.config.get_text_config()
        lengths = [getattr(config, key, None) for key in _LENGTHS]
        self.context_length: int = next((length for length in lengths if length), sys.maxsize)
        # Logits of a whole prompt take gigabytes; models with code of their own may know nothing of sparing them.
        self._can_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.facts = ModelFacts(
            f"hf:{name}",
            "transformers",
            None if getattr(model.config, "quantization_config", None) else 16,
            str(model.dtype).removeprefix("torch."),
            str(self._device),
            model.num_parameters(),
            {package: version(package) for package in ("torch", "transformers")},
            digest_weights(Path(cached_file(name, "config.json")).parent),
        )

    def encode(self, texts: Sequence[str], bos: bool) -> list[list[int]]:
        plain: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        prefix = self._find_prefix() if bos else []
        return [prefix + ids for ids in plain]

    def find_letters(self, form: LetterForm) -> list[int]:
        return choose_letters(self.encode(render_letters(form), bos=False), self.facts.model)

    def encode_chats(self, chats: Sequence[Sequence[Mapping[str, str]]]) -> list[list[int]]:
        return [self._encode_chat(chat) for chat in chats]

    @torch.inference_mode()
    def score_letters(
        self, prompts: Iterable[Sequence[int]], letter_ids: Sequence[int]
    ) -> Iterator[tuple[int, list[float]]]:
        for batch in _batch(prompts):
            # Filled up on the right: what is to come cannot be seen, so positions and scores are those of one prompt.
            ids, mask = self._fill([prompt for _, prompt in batch], left=False)
            last = mask.sum(1) - 1
            rows = torch.arange(len(batch), device=self._device)
            if self._can_keep:
                kept, last = last.unique(return_inverse=True)
                logits = self._model(ids, attention_mask=mask, use_cache=False, logits_to_keep=kept).logits
            else:
                logits = self._model(ids, attention_mask=mask, use_cache=False).logits
            scores = logits[rows, last][:, list(letter_ids)].float().tolist()
            yield from zip((number for number, _ in batch), scores, strict=True)

    @torch.inference_mode()
    def generate(self, prompts: Iterable[GenerationPrompt], options: GenerationOptions) -> Iterator[tuple[int, str]]:
        """Raises ChuanError for messages to a model without a chat template, and for a prompt that is too long."""
        for batch in _batch(self._render(prompt) for prompt in prompts):
            ids, mask = self._fill([prompt for _, prompt in batch], left=True)
            room = self.context_length - ids.shape[1]
            if room < 1:
                raise ChuanError(f"{ids.shape[1]} tokens leave no room for a reply in {self.context_length}")
            torch.manual_seed(options.seed)
            done = self._model.generate(
                ids,
                attention_mask=mask,
                tokenizer=self._tokenizer,
                generation_config=self._build_config(options, min(options.max_new_tokens, room)),
            )
            replies = self._tokenizer.batch_decode(done[:, ids.shape[1] :], skip_special_tokens=True)
            for (number, _), reply in zip(batch, replies, strict=True):
                yield number, _cut(reply, options.stop)

    def _build_config(self, options: GenerationOptions, max_new_tokens: int) -> GenerationConfig:
        # Built anew: penalties and temperatures of the model's own would make greedy something else.
        eos = self._model.generation_config.eos_token_id
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=options.temperature > 0,
            temperature=options.temperature if options.temperature > 0 else None,
            top_k=0 if options.temperature > 0 else None,
            stop_strings=list(options.stop) or None,
            eos_token_id=eos if eos is not None else self._tokenizer.eos_token_id,
            pad_token_id=self._find_filler(),
        )

    def _render(self, prompt: GenerationPrompt) -> list[int]:
        return self.encode([prompt], bos=True)[0] if isinstance(prompt, str) else self._encode_chat(prompt)

    def _encode_chat(self, chat: Sequence[Mapping[str, str]]) -> list[int]:
        if self._tokenizer.chat_template is None:
            raise ChuanError(
                f"{self.facts.model} is a base model without a chat template; ask it by --mode base and letters"
            )
        messages = [dict(message) for message in chat]
        try:
            text = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=messages[-1]["role"] != "assistant", tokenize=False
            )
        except TemplateError as error:
            raise ChuanError(f"the chat template of {self.facts.model} refuses: {first_line(error):.200}") from None
        return self.encode([text], bos=False)[0]

    def _find_prefix(self) -> list[int]:
        """What the tokenizer puts before a text: a bos, or nothing."""
        plain, whole = (self._tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
        starts = [start for start in range(len(whole)) if whole[start : start + len(plain)] == plain]
        return list(whole[: starts[0]]) if starts else []

    def _find_filler(self) -> int:
        """An id for places that are masked; any would do, the tokenizer's own tells generate() where replies end."""
        known = (self._tokenizer.pad_token_id, self._tokenizer.eos_token_id)
        return next((token_id for token_id in known if token_id is not None), 0)

    def _fill(self, prompts: Sequence[Sequence[int]], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T) ids and mask."""
        longest = max(map(len, prompts))
        ids, mask = [], []
        for prompt in prompts:
            filler = [self._find_filler()] * (longest - len(prompt))
            own, none = [1] * len(prompt), [0] * len(filler)
            ids.append([*filler, *prompt] if left else [*prompt, *filler])
            mask.append(none + own if left else own + none)
        return torch.tensor(ids, device=self._device), torch.tensor(mask, device=self._device)


def _batch(prompts: Iterable[Sequence[int]]) -> Iterator[list[tuple[int, Sequence[int]]]]:
    """Numbered prompts of about one length together, the longest of a window first."""
    numbered = iter(enumerate(prompts))
    while window := list(islice(numbered, _WINDOW)):
        window.sort(key=lambda pair: -len(pair[1]))
        while window:
            size = max(1, _BATCH_TOKENS // max(1, len(window[0][1])))
            yield window[:size]
            del window[:size]


def _cut(reply: str, stops: Sequence[str]) -> str:
    """A reply up to the first text that ends it."""
    return reply[: min((place for stop in stops if (place := reply.find(stop)) >= 0), default=len(reply))]


def _explain(name: str, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return f"hf:{name} needs code of its own to run; read it, and give --trust-remote-code if you trust it"
    return f"transformers cannot open {name}: {first_line(error):.200}; check the name or the folder"
