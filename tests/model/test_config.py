import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chuan.errors import ChuanError
from chuan.model.config import PRESETS, ModelConfig, RopeScaling
from chuan.model.decoder import Decoder
from tests.support.tiny import build_tiny_config

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(("name", "count"), [("baichuan-7b", 7_000_559_616), ("baichuan2-7b", 7_505_973_248)])
def test_presets_have_the_published_number_of_parameters(name: str, count: int):
    config = PRESETS[name]
    assert config.parameter_count == count
    with torch.device("meta"):
        assert sum(weight.numel() for weight in Decoder(config).parameters()) == count
    assert (config.intermediate_size, config.context_length, config.head_dim) == (11008, 4096, 128)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 2},
        {"attention_bias": True, "mlp_bias": True},
        {"head_dim": 20},
    ],
)
def test_parameter_count_is_counted(changes: dict):
    config = build_tiny_config(**changes)
    assert config.parameter_count == sum(weight.numel() for weight in Decoder(config).parameters())


@pytest.mark.parametrize(
    ("width", "ffn"), [(4096, 11008), (96, 256), (97, 512), (384, 1024), (768, 2048), (5120, 13824)]
)
def test_unset_ffn_width_is_eight_thirds_rounded_up_to_256(width: int, ffn: int):
    assert (
        ModelConfig(
            vocab_size=8, hidden_size=width, num_hidden_layers=1, num_attention_heads=1, head_dim=2
        ).intermediate_size
        == ffn
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 0}, "vocab_size"),
        ({"vocab_size": None}, "lacks vocab_size"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"hidden_size": 2**40}, "hidden_size"),
        ({"num_hidden_layers": 1.5}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"num_hidden_layers": 3_000_000}, "at most 1024"),
        ({"num_attention_heads": 5}, "cannot be split"),
        ({"num_attention_heads": "4"}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "not a multiple"),
        ({"head_dim": 3}, "even"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"sliding_window": 512}, "sliding-window"),
        ({"rope_scaling": 3}, "rope_scaling"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "not supported"),
        ({"rope_scaling": {"factor": 2.0}}, "not supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, "lacks factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "at least 1"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "surprise": 1}}, "surprise"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "head_dim": 2}, "head_dim"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ],
)
def test_bad_values_are_one_line(changes: dict, words: str):
    with pytest.raises(ChuanError, match=words) as info:
        build_tiny_config(**changes)
    assert "\n" not in str(info.value)


def test_what_transformers_5_and_4_write_is_the_same():
    old = build_tiny_config(rope_theta=5e5, rope_scaling=LLAMA3)
    new = build_tiny_config(rope_parameters={**LLAMA3, "rope_theta": 5e5})
    assert old == new
    assert ModelConfig.from_dict(old.to_dict()) == old


@pytest.mark.parametrize(
    ("scaling", "length"),
    [
        (None, 128),
        ({"type": "linear", "factor": 4.0}, 512),
        ({"rope_type": "dynamic", "factor": 2.0}, 256),
        (LLAMA3, 128),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
    ],
)
def test_context_length_counts_the_scaling(scaling: dict | None, length: int):
    assert build_tiny_config(rope_scaling=scaling).context_length == length


JUNK = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.lists(st.integers(), max_size=2)
)
KEYS = [
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("rope_theta", "tie_word_embeddings", "hidden_act", "max_position_embeddings", "rms_norm_eps", "attention_bias"),
]
ROPE = st.fixed_dictionaries(
    {},
    optional={
        "rope_type": st.sampled_from(["linear", "dynamic", "llama3", "yarn", "default", "su"]) | JUNK,
        **{
            key: JUNK | st.floats(1, 8) | st.integers(1, 64)
            for key in [*LLAMA3, "beta_fast", "truncate"]
            if key != "rope_type"
        },
    },
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), JUNK | st.integers(1, 64), max_size=4), JUNK | ROPE)
def test_anything_gives_a_config_or_one_line(changes: dict, scaling: object):
    try:
        config = build_tiny_config(**changes, rope_scaling=scaling)
    except ChuanError as error:
        assert "\n" not in str(error)
    else:
        assert config.parameter_count > 0
        assert config.context_length > 0
        assert ModelConfig.from_dict(config.to_dict()) == config
        assert RopeScaling.from_dict(config.to_dict()["rope_scaling"]) == config.rope_scaling
