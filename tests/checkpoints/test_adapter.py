"""LoRA adapters of both layouts; PEFT makes them, loads what was made of them, and says what they do to a model."""

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from chuan.checkpoints.adapter import convert_adapter, describe_adapter, is_adapter
from tests.support.folders import HEADS, LAYERS, WIDTH, build_llama
from tests.support.loading import attempt, load_logits, refusal

QKV = ["q_proj", "k_proj", "v_proj"]
LAYER_0 = "base_model.model.model.layers.0."
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def build_base(layout: str) -> nn.Module:
    """The same model in either layout, in float64 so that merging rounds nothing that matters."""
    llama = build_llama(64, num_key_value_heads=HEADS).double()
    return llama if layout == "llama" else PackedModel(llama)


class PackedModel(nn.Module):
    """The linear layers of a Llama under Baichuan's names; PEFT asks for no more."""

    def __init__(self, llama: nn.Module) -> None:
        super().__init__()
        layers = []
        for layer in llama.model.layers:
            attention, packed = layer.self_attn, nn.Linear(WIDTH, 3 * WIDTH, bias=False).double()
            packed.weight.data = torch.cat([getattr(attention, name).weight.data for name in QKV])
            layers.append(
                nn.ModuleDict(
                    {"self_attn": nn.ModuleDict({"W_pack": packed, "o_proj": attention.o_proj}), "mlp": layer.mlp}
                )
            )
        self.model = nn.ModuleDict({"layers": nn.ModuleList(layers)})


def write_adapter(path: Path, layout: str, dtype: torch.dtype = torch.float32, seed: int = 0, **config: Any) -> Path:
    """What PEFT saves of an adapter with random numbers."""
    model = peft.get_peft_model(build_base(layout), peft.LoraConfig(**({"r": 4, "lora_alpha": 8} | config)))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(dtype)
    model.save_pretrained(path)
    return path


def measure(folder: Path, layout: str) -> dict[str, Tensor]:
    """By how much PEFT changes each weight when it merges the adapter; W_pack in its three parts."""
    before = build_base(layout).state_dict()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loaded = peft.PeftModel.from_pretrained(build_base(layout), folder)
    complaints = [str(warning.message) for warning in said if "adapter keys" in str(warning.message)]
    complaints += [str(warning.message) for warning in said if "did not match" in str(warning.message)]
    assert not complaints
    after = loaded.merge_and_unload().state_dict()
    changes = {}
    for name, weight in after.items():
        if ".layers." in name and "norm" not in name:
            change = weight - before[name]
            parts = zip(QKV, change.chunk(3), strict=True) if "W_pack" in name else [("W_pack", change)]
            changes |= {name.replace("W_pack", part): rows for part, rows in parts}
    assert len(changes) == 7 * LAYERS
    return changes


def assert_same_change(source: Path, target: Path, to: str, tolerance: float = 1e-12) -> None:
    expected, found = measure(source, "llama" if to == "baichuan" else "baichuan"), measure(target, to)
    assert expected.keys() == found.keys()
    assert any(change.abs().max() > 0.1 for change in expected.values())
    for name, change in expected.items():
        assert float((found[name] - change).abs().max()) <= tolerance * max(float(change.abs().max()), 1), name


def read_tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration, with the one list that PEFT writes in any order sorted."""
    config = json.loads((folder / "adapter_config.json").read_text())
    return config | {"target_modules": sorted(config["target_modules"])}


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def assert_equal_tensors(one: Path, other: Path) -> None:
    left, right = read_tensors(one), read_tensors(other)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype
        assert torch.equal(tensor, right[name]), name


@pytest.fixture(scope="session")
def packed_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("packed"), "baichuan", target_modules=["W_pack", "o_proj"])


@pytest.fixture(scope="session")
def split_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("split"), "llama", target_modules=QKV)


@pytest.fixture
def packed(packed_source: Path, tmp_path: Path) -> Path:
    return copy(packed_source, tmp_path / "packed")


@pytest.fixture
def split(split_source: Path, tmp_path: Path) -> Path:
    return copy(split_source, tmp_path / "split")


def copy(source: Path, target: Path) -> Path:
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["W_pack"]},
        {"target_modules": ["W_pack", "o_proj", "gate_proj", "up_proj", "down_proj"]},
        {"target_modules": ["W_pack", "o_proj"], "use_rslora": True, "lora_alpha": 5},
        {
            "target_modules": ["W_pack", "o_proj"],
            "rank_pattern": {"W_pack": 6},
            "alpha_pattern": {"W_pack": 3},
        },
        {
            "target_modules": ["W_pack"],
            "rank_pattern": {"model.layers.1.self_attn.W_pack": 7},
            "alpha_pattern": {"model.layers.0.self_attn.W_pack": 9},
        },
        {"target_modules": ["model.layers.1.self_attn.W_pack"]},
    ],
    ids=["plain", "all", "rslora", "patterns", "layers", "one-layer"],
)
def test_w_pack_to_three_and_back_is_bit_for_bit(tmp_path: Path, config: dict, dtype: torch.dtype):
    source = write_adapter(tmp_path / "source", "baichuan", dtype, **config)
    llama = convert_adapter(source, tmp_path / "llama", "llama")
    back = convert_adapter(llama, tmp_path / "back", "baichuan")
    assert llama == tmp_path / "llama"
    assert_same_change(source, llama, "llama")
    assert_equal_tensors(source, back)
    assert read_config(back) == read_config(source)
    assert {tensor.dtype for tensor in read_tensors(llama).values()} == {dtype}


def test_the_three_share_one_a_and_take_their_rows_of_b(packed: Path, tmp_path: Path):
    found = read_tensors(convert_adapter(packed, tmp_path / "llama", "llama"))
    source, prefix = read_tensors(packed), f"{LAYER_0}self_attn."
    for index, part in enumerate(QKV):
        assert torch.equal(found[f"{prefix}{part}.lora_A.weight"], source[f"{prefix}W_pack.lora_A.weight"])
        rows = source[f"{prefix}W_pack.lora_B.weight"][index * WIDTH : (index + 1) * WIDTH]
        assert torch.equal(found[f"{prefix}{part}.lora_B.weight"], rows)
    assert torch.equal(found[f"{prefix}o_proj.lora_B.weight"], source[f"{prefix}o_proj.lora_B.weight"])
    assert not any("W_pack" in name for name in found)
    assert read_config(tmp_path / "llama")["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]


@pytest.mark.parametrize(
    ("config", "rank", "alpha"),
    [
        ({"target_modules": QKV}, 12, 24),
        ({"target_modules": ["q_proj", "v_proj"]}, 8, 16),
        ({"target_modules": ["k_proj"]}, 4, 8),
        ({"target_modules": QKV, "r": 3, "lora_alpha": 1}, 9, 3),
        ({"target_modules": QKV, "use_rslora": True}, 12, 8 * math.sqrt(3)),
        (
            {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 4}},
            6,
            12,
        ),
    ],
    ids=["qkv", "qv", "k", "r-3", "rslora", "ranks"],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_of_their_own_are_joined(tmp_path: Path, config: dict, rank: int, alpha: float, dtype: torch.dtype):
    source = write_adapter(tmp_path / "source", "llama", dtype, **config)
    target = convert_adapter(source, tmp_path / "target", "baichuan")
    assert_same_change(source, target, "baichuan")
    written = read_config(target)
    assert (written["r"], written["rank_pattern"], written["alpha_pattern"]) == (rank, {}, {})
    assert written["lora_alpha"] == pytest.approx(alpha, rel=1e-14)
    assert isinstance(written["lora_alpha"], type(alpha))
    assert written["target_modules"] == ["W_pack"]
    tensors = read_tensors(target)
    assert tensors[f"{LAYER_0}self_attn.W_pack.lora_A.weight"].shape == (rank, WIDTH)
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}


@pytest.mark.parametrize("rslora", [False, True])
def test_other_layers_keep_their_rank_beside_a_joined_one(tmp_path: Path, rslora: bool):
    targets = ["q_proj", "v_proj", "o_proj", "down_proj"]
    source = write_adapter(tmp_path / "source", "llama", target_modules=targets, use_rslora=rslora)
    target = convert_adapter(source, tmp_path / "target", "baichuan")
    assert_same_change(source, target, "baichuan")
    written = read_config(target)
    assert (written["r"], written["lora_alpha"]) == (4, 8)
    assert written["rank_pattern"] == {"W_pack": 8}
    assert written["alpha_pattern"] == {"W_pack": pytest.approx(8 * math.sqrt(2) if rslora else 16)}
    assert_same_change(target, convert_adapter(target, tmp_path / "back", "llama"), "llama")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("alpha", "exact"), [(16, True), (12, False), (1, True), (0, True), (-4, True)])
def test_parts_that_are_scaled_otherwise_are_joined(tmp_path: Path, alpha: int, exact: bool, dtype: torch.dtype):
    """A ratio that 16 bits would round goes to float32, so that the change is the same."""
    source = write_adapter(tmp_path / "source", "llama", dtype, target_modules=QKV, alpha_pattern={"k_proj": alpha})
    target = convert_adapter(source, tmp_path / "target", "baichuan")
    assert_same_change(source, target, "baichuan", 1e-12 if exact else 1e-6)
    b = read_tensors(target)[f"{LAYER_0}self_attn.W_pack.lora_B.weight"]
    assert b.dtype == (dtype if exact else torch.float32)


def test_parts_of_two_types_are_joined(split: Path, tmp_path: Path):
    tensors = read_tensors(split)
    tensors |= {name: tensor.bfloat16() for name, tensor in tensors.items() if "q_proj" in name}
    tensors |= {name: tensor.half() for name, tensor in tensors.items() if "v_proj" in name}
    save_file(tensors, split / "adapter_model.safetensors")
    assert_same_change(split, convert_adapter(split, tmp_path / "target", "baichuan"), "baichuan")


def test_one_a_with_two_scalings_is_not_shared(packed: Path, tmp_path: Path):
    llama = convert_adapter(packed, tmp_path / "llama", "llama")
    edit_config(llama, alpha_pattern={"k_proj": 16})
    target = convert_adapter(llama, tmp_path / "target", "baichuan")
    assert read_config(target)["rank_pattern"] == {"W_pack": 12}
    assert_same_change(llama, target, "baichuan")


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": r"model\.layers\.1\.self_attn\.(q|v)_proj"},
        {"target_modules": r".*\.layers\.(0\.self_attn\.[qk]|1\.self_attn\.[vo])_proj"},
        {"target_modules": QKV, "layers_to_transform": 0},
        {"target_modules": QKV, "layers_to_transform": [1], "layers_pattern": "layers"},
        {"target_modules": QKV, "exclude_modules": r".*\.0\..*k_proj"},
        {"target_modules": ["layers.0.self_attn.q_proj", "layers.1.self_attn.o_proj", "layers.1.self_attn.k_proj"]},
        {"target_modules": [*QKV, "o_proj"], "rank_pattern": {r".*\.0\.self_attn\.[qo]_proj": 2}},
        {"target_modules": [*QKV, "o_proj"], "rank_pattern": {r"0.*(q|k)_proj": 3, "q_proj": 2}},
        {"target_modules": [*QKV, "o_proj"], "alpha_pattern": {r"1\..*": 4.5}, "use_rslora": True},
    ],
    ids=["regex", "regex-mixed", "layer-0", "layer-1", "excluded", "paths", "ranks", "first-match", "alphas"],
)
def test_layers_that_differ_are_named_one_by_one(tmp_path: Path, config: dict):
    source = write_adapter(tmp_path / "source", "llama", **config)
    target = convert_adapter(source, tmp_path / "target", "baichuan")
    assert_same_change(source, target, "baichuan", 1e-6)
    back = convert_adapter(target, tmp_path / "back", "llama")
    assert_same_change(target, back, "llama")


def test_all_linear_becomes_a_list(tmp_path: Path):
    source = write_adapter(tmp_path / "source", "baichuan", target_modules=["W_pack"])
    edit_config(source, target_modules="all-linear")
    target = convert_adapter(source, tmp_path / "target", "llama")
    assert read_config(target)["target_modules"] == sorted(QKV)


@pytest.mark.parametrize("legacy", [False, True])
def test_bin_files_are_read_and_safetensors_are_written(packed: Path, tmp_path: Path, legacy: bool):
    expected = convert_adapter(packed, tmp_path / "expected", "llama")
    tensors = {name: nn.Parameter(tensor.T.contiguous().T) for name, tensor in read_tensors(packed).items()}
    torch.save(tensors, packed / "adapter_model.bin", _use_new_zipfile_serialization=not legacy)
    (packed / "adapter_model.safetensors").unlink()
    target = convert_adapter(packed, tmp_path / "target", "llama")
    assert_equal_tensors(target, expected)
    assert not (target / "adapter_model.bin").exists()


def test_the_other_settings_and_files_come_along(packed: Path, tmp_path: Path):
    kept = {"base_model_name_or_path": "someone/baichuan", "lora_dropout": 0.05, "task_type": "CAUSAL_LM", "new": [1]}
    edit_config(packed, **kept)
    (packed / "LICENSE").write_text("do as you like")
    (packed / "LICENSE.zh.md").write_text("随意")
    (packed / "README.md").write_text("our own model")
    (packed / "training_args.bin").write_bytes(b"x")
    target = convert_adapter(packed, tmp_path / "target", "llama")
    names = ["LICENSE", "LICENSE.zh.md", "README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert sorted(path.name for path in target.iterdir()) == names
    assert (target / "LICENSE.zh.md").read_text() == "随意"
    card = (target / "README.md").read_text()
    assert card.startswith("---\nlicense: other\n")
    assert "base_model: someone/baichuan\n" in card
    assert "| written as | an adapter of q_proj, k_proj and v_proj |" in card
    changed = {"target_modules"}
    source, written = read_config(packed), read_config(target)
    assert {key for key in source.keys() | written.keys() if source.get(key) != written.get(key)} == changed
    with safe_open(target / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("start", ["eva", "orthogonal", "gaussian", True, False])
def test_how_training_began_does_not_matter(split: Path, tmp_path: Path, start: object):
    edit_config(split, init_lora_weights=start, r=4)
    target = convert_adapter(split, tmp_path / "target", "baichuan")
    assert read_config(target)["init_lora_weights"] == (True if start in ("eva", "orthogonal") else start)
    edit_config(split, init_lora_weights=True)
    assert_same_change(split, target, "baichuan")


def test_the_source_is_left_alone(packed: Path, tmp_path: Path):
    def describe() -> dict[str, tuple[str, int]]:
        return {
            path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
            for path in packed.iterdir()
        }

    before = describe()
    convert_adapter(packed, tmp_path / "target", "llama")
    assert describe() == before


def test_files_that_are_links_are_read(packed: Path, tmp_path: Path):
    """As in the cache of the Hugging Face hub."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in packed.iterdir():
        (linked / path.name).symlink_to(path)
    target = convert_adapter(linked, tmp_path / "target", "llama")
    assert not any(path.is_symlink() for path in target.iterdir())
    assert_same_change(packed, target, "llama")


def test_an_adapter_is_known_by_its_configuration(packed: Path, tmp_path: Path):
    assert is_adapter(packed)
    assert not is_adapter(tmp_path)
    assert not is_adapter(tmp_path / "nothing")
    assert not is_adapter(packed / "adapter_config.json")
    assert "is a LoRA adapter and no model; `chuan merge` makes one" in refusal(load_logits, packed)
    (packed / "config.json").write_text("{}")
    assert not is_adapter(packed)  # a model's folder, which PEFT was let into


def test_peft_s_own_name_of_an_adapter_is_read(packed: Path, tmp_path: Path):
    """In a state dict that was saved without PEFT."""
    tensors = load_file(packed / "adapter_model.safetensors")
    named = {key.replace(".weight", ".default.weight"): tensor for key, tensor in tensors.items()}
    save_file(named, packed / "adapter_model.safetensors")
    target = convert_adapter(packed, tmp_path / "target", "llama")
    save_file(tensors, packed / "adapter_model.safetensors")
    assert_same_change(packed, target, "llama")
    save_file(tensors | {key: tensor.clone() for key, tensor in named.items()}, packed / "adapter_model.safetensors")
    assert "under two names" in refusal(convert_adapter, packed, tmp_path / "other", "llama")


def test_what_an_adapter_is_for_people(packed: Path):
    edit_config(packed, base_model_name_or_path="baichuan-inc/Baichuan2-7B-Base")
    described = {"base model": "baichuan-inc/Baichuan2-7B-Base", "rank": "4", "layers": "W_pack, o_proj"}
    assert describe_adapter(packed) == described
    edit_config(packed, base_model_name_or_path=[], target_modules=None, r={})
    assert describe_adapter(packed) == {"base model": "not stated", "rank": "{}", "layers": "not stated"}


def test_odd_texts_of_a_configuration_come_along(packed: Path, tmp_path: Path):
    edit_config(packed, base_model_name_or_path="\ud800")
    target = convert_adapter(packed, tmp_path / "target", "llama")
    assert read_config(target)["base_model_name_or_path"] == "\ud800"


REFUSED_SETTINGS = [
    ({"peft_type": "LOHA"}, "describes 'LOHA', and only LORA can be converted"),
    ({"peft_type": None}, "describes None"),
    ({"use_dora": True}, "uses use_dora,"),
    ({"modules_to_save": ["lm_head"]}, "uses modules_to_save,"),
    ({"lora_bias": True}, "uses lora_bias,"),
    ({"bias": "all"}, "uses bias,"),
    ({"layer_replication": [[0, 1], [0, 2]]}, "uses layer_replication,"),
    ({"target_parameters": ["x"]}, "uses target_parameters,"),
    ({"trainable_token_indices": [1]}, "uses trainable_token_indices,"),
    ({"alora_invocation_tokens": [1]}, "uses alora_invocation_tokens,"),
    ({"use_qalora": True}, "uses use_qalora,"),
    ({"use_bdlora": {"nblocks": 2}}, "uses use_bdlora,"),
    ({"velora_config": {"scale": 1}}, "uses velora_config,"),
    ({"init_lora_weights": "pissa"}, "uses init_lora_weights='pissa',"),
    ({"init_lora_weights": "pissa_niter_4"}, "uses init_lora_weights='pissa_niter_4',"),
    ({"init_lora_weights": "olora"}, "uses init_lora_weights='olora',"),
    ({"init_lora_weights": "loftq"}, "uses init_lora_weights='loftq',"),
    ({"init_lora_weights": ["\n"]}, "uses init_lora_weights="),
    ({"r": 8}, "no pair of the rank 8"),
    ({"r": 0}, "no pair of the rank 0"),
    ({"rank_pattern": {"W_pack": 5}}, "W_pack has A (4, 64) and B (192, 4), no pair of the rank 5"),
    ({"r": "4"}, "the r '4'"),
    ({"r": True}, "the r True"),
    ({"lora_alpha": None}, "the lora_alpha None"),
    ({"lora_alpha": float("nan")}, "the lora_alpha nan"),
    ({"lora_alpha": float("inf")}, "the lora_alpha inf"),
    ({"lora_alpha": 10**400}, "the lora_alpha 1000"),
    ({"alpha_pattern": {"W_pack": [1]}}, "the lora_alpha [1]"),
    ({"rank_pattern": {"(": 4}}, "has a rank_pattern that cannot be read"),
    ({"rank_pattern": ["W_pack"]}, "has a rank_pattern that cannot be read"),
    ({"alpha_pattern": 5}, "has a alpha_pattern that cannot be read"),
]


@pytest.mark.parametrize(("settings", "says"), REFUSED_SETTINGS, ids=[str(item[0])[:40] for item in REFUSED_SETTINGS])
def test_settings_that_cannot_be_carried_over_are_refused(packed: Path, tmp_path: Path, settings: dict, says: str):
    edit_config(packed, **settings)
    message = refuse(packed, tmp_path, "llama")
    assert says in message
    assert str(packed) in message


def refuse(source: Path, folder: Path, to: str) -> str:
    message = refusal(convert_adapter, source, folder / "target", to)
    assert not [path for path in folder.iterdir() if "target" in path.name]
    return message


def cut(name: str, edit: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: tensors | {f"{LAYER_0}{name}": edit(tensors[f"{LAYER_0}{name}"]).contiguous()}


def put(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: tensors | {name: torch.ones(4, 4)}


def poison(value: float) -> Callable[[Tensor], Tensor]:
    def edit(tensor: Tensor) -> Tensor:
        tensor[-1, -1] = value
        return tensor

    return edit


def drop(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != f"{LAYER_0}{name}"}


PACK_A, PACK_B = "self_attn.W_pack.lora_A.weight", "self_attn.W_pack.lora_B.weight"
BROKEN_PACKED = {
    "no-b": (drop(PACK_B), "holds lora_A of model.layers.0.self_attn.W_pack without its other half"),
    "no-a": (drop(PACK_A), "holds lora_B of model.layers.0.self_attn.W_pack without its other half"),
    "no-half-of-o": (drop("self_attn.o_proj.lora_A.weight"), "holds lora_B of model.layers.0.self_attn.o_proj without"),
    "rank-of-a": (cut(PACK_A, lambda tensor: tensor[:3]), "A (3, 64) and B (192, 4), no pair of the rank 4"),
    "rank-of-b": (cut(PACK_B, lambda tensor: tensor[:, :3]), "A (4, 64) and B (192, 3), no pair of the rank 4"),
    "both-ranks": (
        lambda tensors: cut(PACK_A, lambda a: a[:3])(cut(PACK_B, lambda b: b[:, :3])(tensors)),
        "A (3, 64) and B (192, 3), no pair of the rank 4",
    ),
    "one-dimension": (cut(PACK_A, lambda tensor: tensor[:, 0]), "no pair of the rank 4"),
    "no-columns": (cut(PACK_A, lambda tensor: tensor[:, :0]), "no pair of the rank 4"),
    "rows": (cut(PACK_B, lambda tensor: tensor[:128]), "this adapter is for another model"),
    "rows-not-of-three": (cut(PACK_B, lambda tensor: tensor[:191]), "this adapter is for another model"),
    "columns": (cut(PACK_A, lambda tensor: tensor[:, :60]), "this adapter is for another model"),
    "nan-a": (cut(PACK_A, poison(float("nan"))), "NaN, infinity"),
    "inf-b": (cut(PACK_B, poison(float("-inf"))), "NaN, infinity"),
    "nan-o": (cut("self_attn.o_proj.lora_B.weight", poison(float("nan"))), "NaN, infinity"),
    "integers": (cut(PACK_A, lambda tensor: tensor.to(torch.int8)), "no floats"),
    "float8": (cut(PACK_A, lambda tensor: tensor.to(torch.float8_e4m3fn)), "no floats"),
    "embedding": (put("base_model.model.model.embed_tokens.lora_embedding_A"), "lora_embedding_A, no LoRA weight of"),
    "head": (put("base_model.model.lm_head.lora_A.weight"), "holds base_model.model.lm_head.lora_A.weight"),
    "bias": (put(f"{LAYER_0}self_attn.W_pack.lora_B.bias"), "lora_B.bias"),
    "dora": (put(f"{LAYER_0}self_attn.W_pack.lora_magnitude_vector"), "lora_magnitude_vector"),
    "unknown": (put("x\n\x1b[31m"), "holds x\\n\\x1b[31m"),
    "saved": (put("base_model.model.model.norm.weight"), "model.norm.weight"),
    "both": (
        lambda tensors: (
            tensors
            | {
                f"{LAYER_0}self_attn.q_proj.lora_A.weight": torch.ones(4, WIDTH),
                f"{LAYER_0}self_attn.q_proj.lora_B.weight": torch.ones(WIDTH, 4),
            }
        ),
        "changes W_pack and also q_proj",
    ),
    "neither": (
        lambda tensors: {name: tensor for name, tensor in tensors.items() if "o_proj" in name},
        "changes none of q, k and v and fits both layouts",
    ),
    "empty": (lambda tensors: {}, "holds no LoRA weights at all"),
}


@pytest.mark.parametrize("binary", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize(("edit", "says"), BROKEN_PACKED.values(), ids=BROKEN_PACKED.keys())
def test_weights_that_do_not_fit_are_refused(packed: Path, tmp_path: Path, edit: Callable, says: str, binary: bool):
    tensors = edit(read_tensors(packed))
    (packed / "adapter_model.safetensors").unlink()
    if binary:
        torch.save(tensors, packed / "adapter_model.bin")
    else:
        save_file(tensors, packed / "adapter_model.safetensors")
    message = refuse(packed, tmp_path, "llama")
    assert says in message
    assert str(packed) in message


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("self_attn.k_proj.lora_B.weight", lambda tensor: tensor[:32]),
        ("self_attn.v_proj.lora_A.weight", lambda tensor: tensor[:, :32]),
    ],
)
def test_parts_that_are_not_square_are_refused(split: Path, tmp_path: Path, name: str, edit: Callable):
    save_file(cut(name, edit)(read_tensors(split)), split / "adapter_model.safetensors")
    assert "this adapter is for another model" in refuse(split, tmp_path, "baichuan")


def test_grouped_queries_are_refused(tmp_path: Path):
    """PEFT's own adapter for a Llama that has them."""
    model = peft.get_peft_model(build_llama(64), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    model.save_pretrained(tmp_path / "source")
    assert "without grouped queries, 64 x 64" in refuse(tmp_path / "source", tmp_path, "baichuan")


def test_parts_of_another_width_are_refused(split: Path, tmp_path: Path):
    tensors = cut("self_attn.k_proj.lora_B.weight", lambda tensor: tensor[:32])(read_tensors(split))
    tensors = cut("self_attn.k_proj.lora_A.weight", lambda tensor: tensor[:, :32])(tensors)
    save_file(tensors, split / "adapter_model.safetensors")
    assert "k_proj is 32 x 32, and Baichuan's" in refuse(split, tmp_path, "baichuan")


def test_an_adapter_that_is_there_already_is_refused(packed: Path, split: Path, tmp_path: Path):
    assert f"{packed} is already in the baichuan layout; use it as it is" in refuse(packed, tmp_path, "baichuan")
    assert f"{split} is already in the llama layout; use it as it is" in refuse(split, tmp_path, "llama")


def test_missing_and_broken_files_are_refused(packed: Path, tmp_path: Path):
    assert "adapter_config.json is missing" in refuse(tmp_path / "nothing", tmp_path, "llama")
    assert "cannot be read" in refuse(packed / "adapter_config.json", tmp_path, "llama")
    weights = packed / "adapter_model.safetensors"
    content = weights.read_bytes()
    for length in (0, 7, 100, len(content) - 1):
        weights.write_bytes(content[:length])
        assert f"{weights} is damaged or cut short" in refuse(packed, tmp_path, "llama")
    weights.unlink()
    assert f"{packed} holds neither adapter_model.safetensors nor adapter_model.bin" in refuse(
        packed, tmp_path, "llama"
    )
    (packed / "adapter_config.json").write_text("{")
    assert "adapter_config.json is not valid JSON" in refuse(packed, tmp_path, "llama")
    (packed / "adapter_config.json").write_text("[]")
    assert "must hold a JSON object" in refuse(packed, tmp_path, "llama")


class Touches:
    """A pickle that makes a file when something runs its code."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_code_in_a_bin_file_is_not_run(packed: Path, tmp_path: Path):
    mark = tmp_path / "mark"
    torch.save(read_tensors(packed) | {"evil": Touches(mark)}, packed / "adapter_model.bin")
    (packed / "adapter_model.safetensors").unlink()
    assert "holds more than tensors" in refuse(packed, tmp_path, "llama")
    assert not mark.exists()


def test_sparse_tensors_of_a_bin_file_are_refused(packed: Path, tmp_path: Path):
    tensors = read_tensors(packed)
    (packed / "adapter_model.safetensors").unlink()
    name = f"{LAYER_0}{PACK_A}"
    torch.save(tensors | {name: tensors[name].to_sparse()}, packed / "adapter_model.bin")
    refuse(packed, tmp_path, "llama")


def test_a_place_that_is_taken_is_refused(packed: Path, tmp_path: Path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "x").write_text("x")
    assert f"{target} is there already and not empty" in refusal(convert_adapter, packed, target, "llama")
    assert [path.name for path in target.iterdir()] == ["x"]
    (target / "x").unlink()
    assert (convert_adapter(packed, target, "llama") / "adapter_config.json").is_file()


@pytest.mark.parametrize("name", ["inside", ".", "a/b", "../link/inside"])
def test_a_place_inside_the_source_is_refused(packed: Path, tmp_path: Path, name: str):
    (tmp_path / "link").symlink_to(packed)
    before = sorted(packed.iterdir())
    assert f"lies inside the adapter {packed}" in refusal(convert_adapter, packed, packed / name, "llama")
    assert sorted(packed.iterdir()) == before


def test_what_is_written_is_read_back_and_compared(split: Path, tmp_path: Path):
    """A ratio of scalings so small that float32 loses B: the check of the written files stops it."""
    edit_config(split, alpha_pattern={"k_proj": 1e-45})
    message = refuse(split, tmp_path, "baichuan")
    assert "was not written: model.layers.0.self_attn.k_proj would be off by" in message


def test_any_configuration_is_refused_or_converted(packed: Path, tmp_path: Path):
    """Each setting in turn with each kind of value: one clear line, or an adapter."""
    config = json.loads((packed / "adapter_config.json").read_text())
    converted = 0
    for index, key in enumerate(config):
        for number, value in enumerate((None, 0, -1, 2.5, "", "x", "(", [], [1], ["("], {}, {"a": None}, {"(": 1})):
            (packed / "adapter_config.json").write_text(json.dumps(config | {key: value}))
            target = tmp_path / f"{index}-{number}"
            converted += attempt(convert_adapter, packed, target, "llama") == target
    assert converted > 100
