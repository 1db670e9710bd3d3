"""The shape of a decoder: sizes, RoPE, and what a `config.json` may say about them.

In: a mapping with the Hugging Face names of the Llama family. Out: a checked, frozen `ModelConfig`. Knows no files and
no layouts: what a Baichuan or a GGUF file calls things is translated in `chuan.checkpoints`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from chuan.errors import ChuanError

RopeType = Literal["linear", "dynamic", "llama3", "yarn"]

# The keys that each kind of RoPE scaling may carry, as transformers defines them (modeling_rope_utils).
_ROPE_KEYS: dict[str, tuple[set[str], set[str]]] = {  # kind: (required, optional)
    "linear": ({"factor"}, set()),
    "dynamic": ({"factor"}, {"original_max_position_embeddings"}),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}, set()),
    "yarn": (
        {"factor"},
        {
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        },
    ),
}

_REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")

# Far above any model of this family; a header that says more is broken, and must not make us allocate.
_LARGEST = 1 << 24
_MOST_LAYERS = 1024  # the deepest models have about a hundred; each layer is built before a weight is read


@dataclass(frozen=True)
class RopeScaling:
    """How the rotary frequencies are stretched for longer contexts (transformers' `rope_scaling`)."""

    rope_type: RopeType
    factor: float
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> RopeScaling | None:
        """Reads `rope_scaling` (or transformers 5's `rope_parameters`); None and "default" mean no scaling."""
        if values is None:
            return None
        if not isinstance(values, Mapping):
            raise ChuanError(f"rope_scaling must be a table or null, not {values!r}")
        given = {key: value for key, value in values.items() if value is not None and key != "rope_theta"}
        kind = given.pop("rope_type", None)
        legacy_kind = given.pop("type", None)
        kind = kind if kind is not None else legacy_kind
        if given.pop("partial_rotary_factor", 1.0) != 1.0:
            raise ChuanError("rope_scaling.partial_rotary_factor other than 1 is not supported")
        if kind in (None, "default") and not given:
            return None
        if not isinstance(kind, str) or kind not in _ROPE_KEYS:
            known = ", ".join(_ROPE_KEYS)
            raise ChuanError(f"rope_scaling of type {kind!r} is not supported; Chuan knows {known}")
        required, optional = _ROPE_KEYS[kind]
        missing = sorted(required - given.keys())
        unknown = sorted(map(str, given.keys() - required - optional))
        if missing:
            raise ChuanError(f"rope_scaling of type {kind!r} lacks {', '.join(missing)}")
        if unknown:
            raise ChuanError(f"rope_scaling of type {kind!r} has unknown keys: {', '.join(unknown)}")
        for key, value in given.items():
            if key == "truncate":
                if not isinstance(value, bool):
                    raise ChuanError(f"rope_scaling.truncate must be true or false, not {value!r}")
            else:
                _check_number(f"rope_scaling.{key}", value, integer=key == "original_max_position_embeddings")
        if given["factor"] < 1:
            raise ChuanError(f"rope_scaling.factor must be at least 1, not {given['factor']!r}")
        if kind == "llama3" and given["high_freq_factor"] <= given["low_freq_factor"]:
            raise ChuanError("rope_scaling.high_freq_factor must be greater than low_freq_factor")
        return cls(rope_type=kind, **given)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """The same table, without the keys that were not set."""
        values = {key: value for key, value in dataclasses.asdict(self).items() if value is not None}
        if self.rope_type != "yarn" or self.truncate:
            values.pop("truncate")
        return values


@dataclass(frozen=True)
class ModelConfig:
    """A Llama-family decoder: RMSNorm, RoPE, SwiGLU, grouped-query attention. Keys as in a Hugging Face config.

    An unset `intermediate_size` is 8/3 of the width, rounded up to a multiple of 256 (the Baichuan-7B model card, after
    Shazeer 2020, https://arxiv.org/abs/2002.05202, section 2).
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int = 0
    num_key_value_heads: int = 0
    head_dim: int = 0
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "num_attention_heads",
            "max_position_embeddings",
        ):
            _check_number(name, getattr(self, name), integer=True)
        _check_number("num_hidden_layers", self.num_hidden_layers, integer=True, largest=_MOST_LAYERS)
        _check_number("rms_norm_eps", self.rms_norm_eps)
        _check_number("rope_theta", self.rope_theta)
        for name in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
            if not isinstance(getattr(self, name), bool):
                raise ChuanError(f"{name} must be true or false, not {getattr(self, name)!r}")
        defaults = {
            "intermediate_size": -(-8 * self.hidden_size // 3 // 256) * 256,
            "num_key_value_heads": self.num_attention_heads,
            "head_dim": self.hidden_size // self.num_attention_heads,
        }
        for name, default in defaults.items():
            if not getattr(self, name):
                if name == "head_dim" and self.hidden_size % self.num_attention_heads:
                    raise ChuanError(
                        f"hidden_size {self.hidden_size} cannot be split into {self.num_attention_heads} heads; "
                        "set head_dim"
                    )
                object.__setattr__(self, name, default)
            _check_number(name, getattr(self, name), integer=True)
        if self.head_dim % 2:
            raise ChuanError(f"head_dim must be even for RoPE, not {self.head_dim}")
        if self.has_dynamic_rope and self.head_dim < 4:
            raise ChuanError(f"dynamic rope_scaling needs a head_dim of at least 4, not {self.head_dim}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ChuanError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Reads the keys of a Hugging Face Llama config; keys that change the mathematics otherwise are refused."""
        activation = values.get("hidden_act", "silu")
        if activation not in ("silu", "swish"):
            raise ChuanError(f"hidden_act {activation!r} is not supported; the Llama family uses 'silu'")
        if values.get("sliding_window") is not None:
            raise ChuanError("sliding-window attention is not supported")
        known = {field.name for field in dataclasses.fields(cls)} - {"rope_scaling"}
        given = {key: value for key, value in values.items() if key in known and value is not None}
        parameters = values.get("rope_parameters")  # transformers 5 writes one table for both
        if isinstance(parameters, Mapping) and parameters.get("rope_theta") is not None:
            given["rope_theta"] = parameters["rope_theta"]
        scaling = values.get("rope_scaling")
        given["rope_scaling"] = RopeScaling.from_dict(scaling if scaling is not None else parameters)
        missing = [name for name in _REQUIRED if name not in given]
        if missing:
            raise ChuanError(f"the model's configuration lacks {', '.join(missing)}")
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """The Hugging Face keys, for a `config.json`."""
        values = dataclasses.asdict(self)
        values["rope_scaling"] = self.rope_scaling.to_dict() if self.rope_scaling else None
        return values | {"hidden_act": "silu"}

    @property
    def has_dynamic_rope(self) -> bool:
        """Whether the rotary angles depend on how long the longest sequence is."""
        return self.rope_scaling is not None and self.rope_scaling.rope_type == "dynamic"

    @property
    def context_length(self) -> int:
        """How many tokens the model can see at most, RoPE scaling counted."""
        scaling = self.rope_scaling
        if scaling is None or scaling.rope_type == "llama3":
            return self.max_position_embeddings
        if scaling.rope_type == "yarn" and scaling.original_max_position_embeddings is None:
            return self.max_position_embeddings
        original = scaling.original_max_position_embeddings or self.max_position_embeddings
        return int(original * scaling.factor)

    @property
    def parameter_count(self) -> int:
        """The number of trainable parameters."""
        width, head = self.hidden_size, self.head_dim
        queries, keys = self.num_attention_heads * head, self.num_key_value_heads * head
        attention = width * (queries + 2 * keys) + queries * width
        if self.attention_bias:
            attention += queries + 2 * keys + width
        ffn = 3 * width * self.intermediate_size
        if self.mlp_bias:
            ffn += 2 * self.intermediate_size + width
        embeddings = self.vocab_size * width * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * (attention + ffn + 2 * width) + width


def _check_number(name: str, value: Any, *, integer: bool = False, largest: int = _LARGEST) -> None:
    kinds = (int,) if integer else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ChuanError(f"{name} must be {'an integer' if integer else 'a number'}, not {value!r}")
    if not 0 < value <= (largest if integer else sys.float_info.max):
        raise ChuanError(f"{name} must be positive{f' and at most {largest}' if integer else ''}, not {value!r:.60}")


PRESETS = {
    # The table of the Baichuan-7B model card: 7,000,559,616 parameters.
    "baichuan-7b": ModelConfig(
        vocab_size=64000, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, max_position_embeddings=4096
    ),
    # The second generation, the model of the card's snippet: 7,505,973,248 parameters.
    "baichuan2-7b": ModelConfig(
        vocab_size=125696, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, max_position_embeddings=4096
    ),
}
