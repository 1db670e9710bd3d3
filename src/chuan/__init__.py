"""Chuan (川): open any Baichuan or Llama-family model, chat, stream, with no remote code.

    import chuan
    model = chuan.load("smollm2-135m")
    print(model.chat([{"role": "user", "content": "What is the capital of France?"}]))

`import chuan` is light: torch is imported when a name below is first used. It also makes the published Baichuan snippet
work on today's transformers, once (and only if) that library's auto classes are imported, and gives
lm-evaluation-harness a model `chuan` in the same way.
"""

import importlib
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from chuan.errors import ChuanError, PromptTooLongError
    from chuan.inference.language_model import LanguageModel
    from chuan.inference.load import load
    from chuan.inference.sampling import SamplingOptions

__all__ = ["load", "LanguageModel", "SamplingOptions", "ChuanError", "PromptTooLongError"]

_HOMES = {
    "load": "chuan.inference.load",
    "LanguageModel": "chuan.inference.language_model",
    "SamplingOptions": "chuan.inference.sampling",
    "ChuanError": "chuan.errors",
    "PromptTooLongError": "chuan.errors",
}

for _module in ("configuration", "modeling", "tokenization"):
    wrapt.register_post_import_hook(
        f"chuan.integrations.transformers.{_module}:register", f"transformers.models.auto.{_module}_auto"
    )
wrapt.register_post_import_hook("chuan.integrations.lm_eval.model:register", "lm_eval.models")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'chuan' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
