"""Baichuan's configuration, as transformers wants one.

A `model_type` that has a local class is loaded by that class: with this registered, `trust_remote_code=True` in the
published snippet trusts nobody.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from transformers import PreTrainedConfig

from chuan.model.config import PRESETS


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


def register(auto: ModuleType) -> None:
    """Called once `transformers.models.auto.configuration_auto` is imported."""
    auto.AutoConfig.register("baichuan", BaichuanConfig, exist_ok=True)
