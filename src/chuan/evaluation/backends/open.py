"""From what the user wrote to what answers.

In: a model's name. Out: a backend. Only the backend that is asked for is imported: the others bring libraries that take
seconds, and that say on stderr what they miss.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from chuan.errors import ChuanError
from chuan.evaluation.backends.backend import LetterBackend, PaidBackend
from chuan.evaluation.backends.chuan import ChuanBackend
from chuan.inference.load import load


def is_api(model: str) -> bool:
    """Whether a name is that of a model behind an API."""
    return model.startswith(("openai:", "anthropic:"))


def open_backend(
    model: str,
    bits: int | None,
    device: str,
    dtype: str,
    trust_remote_code: bool = False,
    base_url: str | None = None,
    concurrency: int = 4,
    cache: Path = Path("replies.jsonl"),
) -> LetterBackend | PaidBackend:
    """`openai:` and `anthropic:` are asked, `hf:` is opened by transformers, anything else by `chuan.load`.

    `base_url` and `concurrency` are those of an API, `cache` the file in which its replies are kept.
    Raises ChuanError where nothing opens a model, and for options that mean nothing for it.
    """
    if is_api(model):
        if bits is not None or trust_remote_code:
            raise ChuanError(f"{model} runs elsewhere; leave out --bits and --trust-remote-code")
        return _find("api").ApiBackend(model, cache, base_url, concurrency)
    if base_url is not None:
        raise ChuanError(f"--base-url is for openai:NAME and anthropic:NAME; {model} is opened on this machine")
    if model.startswith("hf:"):
        if bits not in (None, 16):
            raise ChuanError(f"{model} is run with the weights it has; leave out --bits, or evaluate it without hf:")
        return _find("transformers_backend").TransformersBackend(
            model.removeprefix("hf:"), device, dtype, trust_remote_code
        )
    if trust_remote_code:
        raise ChuanError(f"--trust-remote-code is for hf:{model}; without hf: nothing of a model's folder is run")
    return ChuanBackend(load(model, bits=bits, device=device, dtype=dtype))  # type: ignore[arg-type]


def _find(name: str) -> Any:
    return importlib.import_module(f"chuan.evaluation.backends.{name}")
