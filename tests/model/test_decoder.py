"""Our decoder against transformers' Llama: the same weights, the same logits."""

from typing import Any

import pytest
import torch

from chuan.model.decoder import Decoder
from chuan.model.kv_cache import KVCache
from tests.support.tiny import build_tiny_config, build_tiny_decoder, build_tiny_llama

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"num_key_value_heads": 2},
    "one key head, tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 20},
    "theta": {"rope_theta": 5e5},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 3.0}},
    "llama3": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
    "yarn": {"rope_scaling": YARN},
    "yarn with options": {
        "rope_scaling": {
            **YARN,
            "beta_fast": 16,
            "beta_slow": 2,
            "mscale": 0.7,
            "mscale_all_dim": 0.3,
            "truncate": False,
        }
    },
    "yarn with a factor": {"rope_scaling": {**YARN, "attention_factor": 0.9}},
}


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", VARIANTS)
@torch.inference_mode()
def test_logits_are_transformers_logits(name: str):
    theirs, ours = build_tiny_llama(build_tiny_config(**VARIANTS[name]))
    generator = torch.Generator().manual_seed(1)
    for tokens in (1, 7, 100, 250):  # beyond the original 128 too: dynamic changes there
        ids = torch.randint(0, 307, (2, tokens), generator=generator)
        assert relative(ours(ids), theirs(ids).logits) < 1e-5


@pytest.mark.parametrize("name", VARIANTS)
@torch.inference_mode()
def test_prefill_then_decode_is_one_full_pass(name: str):
    """Within the original context: beyond it, dynamic scaling turns new keys by other angles than the cached ones."""
    decoder = build_tiny_decoder(build_tiny_config(**VARIANTS[name]))
    ids = torch.randint(0, 307, (2, 90), generator=torch.Generator().manual_seed(2))
    full = decoder(ids)
    cache = KVCache(decoder.config, batch_size=2)
    parts = [decoder(ids[:, :40], cache), decoder(ids[:, 40:41], cache), decoder(ids[:, 41:70], cache)]
    parts += [decoder(ids[:, position : position + 1], cache) for position in range(70, 90)]
    assert cache.length == 90
    assert relative(torch.cat(parts, dim=1), full) < 1e-5
    assert relative(decoder(ids, logits_to_keep=3), full[:, -3:]) < 1e-5


@pytest.mark.parametrize("name", ["plain", "grouped", "llama3"])
@torch.inference_mode()
def test_a_left_padded_batch_is_each_alone(name: str):
    decoder = build_tiny_decoder(build_tiny_config(**VARIANTS[name]))
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(0, 307, (1, length), generator=generator) for length in (3, 11, 20)]
    more = torch.randint(0, 307, (3, 2), generator=generator)
    batch = torch.cat([torch.cat([torch.zeros(1, 20 - row.shape[1], dtype=torch.long), row], dim=1) for row in rows])
    mask = torch.stack([torch.arange(20) >= 20 - row.shape[1] for row in rows])
    cache = KVCache(decoder.config, batch_size=3)
    first = decoder(batch, cache, attention_mask=mask)
    second = decoder(more, cache, attention_mask=torch.cat([mask, torch.ones(3, 2, dtype=torch.bool)], dim=1))
    for index, row in enumerate(rows):
        alone = decoder(torch.cat([row, more[index : index + 1]], dim=1))[0]
        assert relative(first[index, -row.shape[1] :], alone[: row.shape[1]]) < 1e-5
        assert relative(second[index], alone[-2:]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_rows_of_padding_are_finite_in_every_precision(dtype: torch.dtype):
    decoder = build_tiny_decoder(build_tiny_config(num_key_value_heads=2)).to(dtype)
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[1] = False
    mask[2, :5] = False
    assert torch.isfinite(decoder(torch.zeros(3, 9, dtype=torch.long), attention_mask=mask)).all()


def test_building_a_full_size_model_costs_nothing_on_meta():
    with torch.device("meta"):
        decoder = Decoder(build_tiny_config(hidden_size=4096, num_attention_heads=32, intermediate_size=11008))
    assert decoder.lm_head.weight.device.type == "meta"
    assert decoder.rope.inv_freq.device.type == "cpu"  # the frequencies are no weights: nobody would fill them
