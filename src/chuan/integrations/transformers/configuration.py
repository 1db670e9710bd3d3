"""Baichuan's configuration, as transformers wants one, and the question whether a model is a Baichuan at all.

The auto classes are registered with, so that configurations and models can be built by type, and wrapped, so that a
Baichuan is opened by our classes whatever `trust_remote_code` says: releases of transformers differ in when they prefer
a registered class to the folder's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import wrapt
from transformers import PreTrainedConfig

from chuan.model.config import PRESETS

_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")


class BaichuanConfig(PreTrainedConfig):
    """The keys of a Baichuan `config.json`; unset ones are those of Baichuan2-7B."""

    model_type = "baichuan"
    keys_to_ignore_at_inference = ("past_key_values",)

    def __init__(self, **kwargs: Any) -> None:
        defaults = PRESETS["baichuan2-7b"].to_dict() | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        defaults.pop("rope_scaling")  # unset, and deprecated by transformers under this name
        # Would make transformers fetch the folder's code in places that do not ask for our registration.
        kwargs.pop("auto_map", None)
        super().__init__(**(defaults | kwargs))


def is_baichuan(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether `from_pretrained(*args, **kwargs)` names a Baichuan folder or hub id; reads its config.json, no code."""
    name = args[0] if args else kwargs.get("pretrained_model_name_or_path")
    hub_options = {key: value for key, value in kwargs.items() if key in _HUB_OPTIONS}
    try:
        config, _ = PreTrainedConfig.get_config_dict(name, **hub_options)
    except (OSError, ValueError, TypeError):
        return False  # transformers says best what is wrong
    return config.get("model_type") == "baichuan"


def open_by(own: Callable[..., Any], ignored: tuple[str, ...]) -> Callable[..., Any]:
    """A wrapper for an auto class: a Baichuan goes to `own`, without the arguments that choose a class."""

    def open_(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not is_baichuan(args, kwargs):
            return wrapped(*args, **kwargs)
        return own(*args, **{key: value for key, value in kwargs.items() if key not in ignored})

    return open_


def register(auto: ModuleType) -> None:
    """Called once `transformers.models.auto.configuration_auto` is imported."""
    auto.AutoConfig.register("baichuan", BaichuanConfig, exist_ok=True)
    open_config = open_by(BaichuanConfig.from_pretrained, ("trust_remote_code", "code_revision"))
    wrapt.wrap_function_wrapper(auto, "AutoConfig.from_pretrained", open_config)
