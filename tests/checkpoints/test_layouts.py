"""Every layout of a folder against transformers' Llama, built from weights that were converted by hand."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from chuan.checkpoints.folder import open_folder
from chuan.checkpoints.layouts import fold_norm_head, list_weights, separate_pairs
from chuan.model.config import ModelConfig
from chuan.model.decoder import Decoder
from tests.support.folders import build_baichuan_twin, write_baichuan_folder, write_llama_folder
from tests.support.loading import difference_of_logits

FILES = ["safetensors", "sharded-safetensors", "bin", "sharded-bin"]
TOLERANCE = 1e-5


@pytest.mark.parametrize("weights", FILES)
def test_llama_equals_transformers(tmp_path: Path, weights):
    twin = write_llama_folder(tmp_path, weights)
    assert difference_of_logits(open_folder(tmp_path), twin) <= TOLERANCE


@pytest.mark.parametrize(
    "config",
    [
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
        {"head_dim": 24, "num_key_value_heads": 4},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}},
    ],
    ids=lambda config: next(iter(config)),
)
def test_llama_variants_equal_transformers(tmp_path: Path, config):
    twin = write_llama_folder(tmp_path, **config)
    assert difference_of_logits(open_folder(tmp_path), twin) <= TOLERANCE


@pytest.mark.parametrize("weights", FILES)
@pytest.mark.parametrize("generation", [1, 2])
def test_baichuan_equals_transformers(tmp_path: Path, generation, weights):
    state = write_baichuan_folder(tmp_path, generation, weights)
    checkpoint = open_folder(tmp_path)
    assert checkpoint.kind == {1: "Baichuan folder", 2: "Baichuan 2 folder"}[generation]
    assert difference_of_logits(checkpoint, build_baichuan_twin(state, generation)) <= TOLERANCE


def test_half_precision_is_widened_exactly(tmp_path: Path):
    twin = write_llama_folder(tmp_path / "llama", dtype=torch.bfloat16)
    assert difference_of_logits(open_folder(tmp_path / "llama"), twin) <= TOLERANCE
    state = write_baichuan_folder(tmp_path / "baichuan", 1, "bin", dtype=torch.float16)
    assert difference_of_logits(open_folder(tmp_path / "baichuan"), build_baichuan_twin(state, 1)) <= TOLERANCE


def test_the_two_generations_are_not_the_same_model(tmp_path: Path):
    """Guards the comparisons above: a head left raw would show."""
    state = write_baichuan_folder(tmp_path, 2)
    assert difference_of_logits(open_folder(tmp_path), build_baichuan_twin(state, 1)) > 0.1


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_list_weights_names_all_of_the_decoder(bias: bool, tied: bool):
    config = ModelConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=24,
        attention_bias=bias,
        mlp_bias=bias,
        tie_word_embeddings=tied,
    )
    assert list_weights(config) == {name: tuple(p.shape) for name, p in Decoder(config).named_parameters()}


def test_norm_head_is_folded_in_float32_across_blocks():
    weight = torch.randn(4100, 8, generator=torch.Generator().manual_seed(0))
    weight[7] = 0  # a row of zeros stays one
    assert torch.equal(fold_norm_head(weight, torch.float32), F.normalize(weight))
    half = fold_norm_head(weight.bfloat16(), torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, F.normalize(weight.bfloat16().float()).bfloat16())
    assert torch.equal(fold_norm_head(half, torch.bfloat16), half)  # folded before: left alone, bit for bit
    assert torch.equal(fold_norm_head(half, torch.float32), F.normalize(half.float()))
    assert torch.equal(fold_norm_head(half * 2, torch.bfloat16), F.normalize((half * 2).float()).bfloat16())


def test_pairs_are_separated_head_by_head():
    rows = torch.tensor([0, 10, 1, 11, 2, 12, 100, 110, 101, 111, 102, 112])
    expected = [0, 1, 2, 10, 11, 12, 100, 101, 102, 110, 111, 112]
    assert separate_pairs(rows, 2).tolist() == expected
    assert separate_pairs(rows[:, None], 2)[:, 0].tolist() == expected
