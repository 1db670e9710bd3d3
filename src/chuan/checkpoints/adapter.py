"""LoRA adapters between the layouts: Baichuan's one W_pack, or Llama's q_proj, k_proj and v_proj.

In: a folder as PEFT saves it. Out: a folder of the other layout that changes a model by the same amount, checked before
it gets its name. Knows no model: a layer's change is B @ A * scaling by PEFT's own rules (`_create_and_replace` and
`get_pattern_key` there), and every pair of A and B in the file counts.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chuan.checkpoints.card import Origin, describe_origin, write_card
from chuan.checkpoints.catalogue import describe_source
from chuan.checkpoints.front_matter import is_hub_id, read_front_matter
from chuan.checkpoints.save import LayoutName
from chuan.checkpoints.weights import PickledWeights, SafetensorsWeights, TensorFiles, save_tensors
from chuan.errors import ChuanError
from chuan.json_file import read_json, save_json
from chuan.staging import check_free, staged_folder

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PARTS = ("q_proj", "k_proj", "v_proj")
_LINEAR = r"model\.layers\.[0-9]+\.(?:self_attn\.(?:W_pack|[qkvo]_proj)|mlp\.(?:gate|up|down)_proj)"
# PEFT leaves its own name of an adapter out; a state dict that was saved without PEFT has it.
_KEY = re.compile(rf"base_model\.model\.({_LINEAR})\.lora_([AB])(?:\.default)?\.weight")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_ROWS = torch.contiguous_format
# Under these a layer adds something other than B @ A * scaling, or the file holds other weights.
_REFUSED = re.compile(
    "use_(dora|qalora|bdlora)|lora_bias|modules_to_save|layer_replication|target_parameters|trainable_token_indices|"
    "alora_invocation_tokens|(kasa|velora|monteclora|arrow|megatron)_config"
)
# The others (PiSSA, OLoRA, LoftQ ...) change the model's own weights while the adapter is loaded, W_pack otherwise than
# its three parts.
_STARTS = (True, False, "gaussian", "eva", "orthogonal")
_INSTEAD = "merge the adapter into its model with PEFT and convert the model"


@dataclass(frozen=True)
class Pair:
    """What an adapter adds to one linear layer: b @ a * scaling. a is (rank, inputs), b (outputs, rank)."""

    a: Tensor
    b: Tensor
    alpha: float
    scaling: float

    def multiply(self) -> Tensor:
        """The change itself, in float64."""
        return self.b.double() @ self.a.double() * self.scaling


def is_adapter(path: Path) -> bool:
    """Whether a folder holds a PEFT adapter and no model."""
    return os.path.isfile(path / CONFIG) and not os.path.exists(path / "config.json")


def describe_adapter(folder: Path) -> dict[str, str]:
    """For people: what it changes, by how many dimensions, in which model."""
    config = read_json(folder / CONFIG)
    base, modules = config.get("base_model_name_or_path"), config.get("target_modules")
    names = modules if isinstance(modules, list) else [modules]
    return {
        "base model": base if isinstance(base, str) and base else "not stated",
        "rank": f"{config.get('r', 8)!r:.20}",
        "layers": ", ".join(sorted(name for name in names if isinstance(name, str)))[:200] or "not stated",
    }


def read_adapter_origin(folder: Path) -> Origin:
    """Where it came from; what its card does not say, its configuration may."""
    matter = read_front_matter(folder)
    base = read_json(folder / CONFIG).get("base_model_name_or_path")
    if "base_model" not in matter and isinstance(base, str) and is_hub_id(base):
        matter["base_model"] = base
    source = describe_source(folder)
    name, revision = (source.repo_id, source.revision) if source is not None else (folder.absolute().name, None)
    return describe_origin(folder, "LoRA adapter (PEFT)", matter, name, revision)


def load_changes(folder: Path) -> dict[str, Pair]:
    """What the adapter adds to each layer of the Llama layout, by the layer's name in the model.

    Raises ChuanError for an adapter that does more than add B @ A to linear layers.
    """
    config = read_json(folder / CONFIG)
    _check_config(config, folder / CONFIG)
    return _split(read_pairs(folder, config), folder)


def convert_adapter(source: Path, target: Path, to: LayoutName) -> Path:
    """Writes the adapter in `source` to the folder `target` in the other layout; returns `target`.

    A W_pack becomes three layers with one A, and such three become one again, bit for bit. Three layers with an A each
    become one of the sum of their ranks. Raises ChuanError where the same change cannot be written down.
    """
    if Path(os.path.realpath(target)).is_relative_to(os.path.realpath(source)):
        raise ChuanError(f"{target} lies inside the adapter {source}; choose another folder")
    check_free(target)
    config = read_json(source / CONFIG)
    _check_config(config, source / CONFIG)
    before = read_pairs(source, config)
    _check_layout(before, source, to)
    after = _split(before, source) if to == "llama" else _join(before, source, config)
    halves = {f"{name}.lora_A": pair.a for name, pair in after.items()}
    halves |= {f"{name}.lora_B": pair.b for name, pair in after.items()}
    # Copies, since safetensors takes no two tensors that share memory.
    tensors = {f"base_model.model.{key}.weight": half.clone(memory_format=_ROWS) for key, half in halves.items()}
    with staged_folder(target) as temporary:
        save_tensors(temporary / WEIGHTS, tensors, {"format": "pt"})
        save_json(temporary / CONFIG, _describe(config, after))
        written = read_pairs(temporary, read_json(temporary / CONFIG))
        _check_same(_split(before, source), _split(written, temporary), target)
        layers = {"llama": "q_proj, k_proj and v_proj", "baichuan": "W_pack"}[to]
        facts = {"written as": f"an adapter of {layers}", "checked": "re-opened; every delta-W equals the source's"}
        write_card(temporary, read_adapter_origin(source), facts)
    return target


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    kind, start = config.get("peft_type"), config.get("init_lora_weights", True)
    if kind != "LORA":
        raise ChuanError(f"{path} describes {kind!r:.80}, and only LORA can be converted; {_INSTEAD}")
    refused = [key for key in config if _REFUSED.fullmatch(key) and config[key]]
    refused += ["bias"] * (config.get("bias", "none") != "none")
    refused += [f"init_lora_weights={start!r:.80}"] * (start not in _STARTS)
    if refused:
        raise ChuanError(f"{path} uses {refused[0]}, which cannot be carried over exactly; {_INSTEAD}")


def read_pairs(folder: Path, config: Mapping[str, Any]) -> dict[str, Pair]:
    """The layers that the adapter changes, by their names in the model."""
    weights = _open_weights(folder)
    layers: dict[str, dict[str, Tensor]] = {}
    for key in (*weights.shapes, *weights.objects):
        path, match = weights.locate(key), _KEY.fullmatch(key)
        if match is None:
            raise ChuanError(f"{path} holds {key:.200}, no LoRA weight of an attention or MLP layer; {_INSTEAD}")
        if match[2] in layers.get(match[1], {}):
            raise ChuanError(f"{path} holds {key:.200} under two names; fetch it again")
        half = weights.read(key).detach()
        plain = half.dtype in _FLOATS and half.layout == torch.strided and half.device.type == "cpu"
        if not (plain and bool(half.isfinite().all())):
            raise ChuanError(f"{path} is broken at {key}: NaN, infinity or no floats; train or fetch it again")
        layers.setdefault(match[1], {})[match[2]] = half
    if not layers:
        raise ChuanError(f"{folder} holds no LoRA weights at all; fetch it again")
    return {name: _build_pair(name, halves, config, folder) for name, halves in layers.items()}


def _open_weights(folder: Path) -> TensorFiles:
    for name, opener in ((WEIGHTS, SafetensorsWeights), ("adapter_model.bin", PickledWeights)):
        if (folder / name).is_file():
            return opener({folder / name: None})
    raise ChuanError(f"{folder} holds neither {WEIGHTS} nor adapter_model.bin; fetch one of them")


def _build_pair(name: str, halves: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path) -> Pair:
    if len(halves) < 2:
        raise ChuanError(f"{folder} holds lora_{next(iter(halves))} of {name} without its other half; fetch it again")
    a, b = halves["A"], halves["B"]
    rank = _look_up(config, "rank_pattern", "r", name, folder)
    if a.ndim != 2 or b.ndim != 2 or not rank == a.shape[0] == b.shape[1] or not (a.numel() and b.numel()):
        shapes = f"A {tuple(a.shape)} and B {tuple(b.shape)}"
        raise ChuanError(f"{folder}: {name} has {shapes:.120}, no pair of the rank {rank} in {CONFIG}; fetch it again")
    alpha = _look_up(config, "alpha_pattern", "lora_alpha", name, folder)
    return Pair(a, b, alpha, alpha / _divisor(config, a.shape[0]))


def _look_up(config: Mapping[str, Any], pattern: str, default: str, name: str, folder: Path) -> float:
    """PEFT's rule: the first pattern that matches the end of a layer's name, else the value for all, else 8."""
    table = config.get(pattern) or {}
    try:
        values = (table[key] for key in table if re.match(rf"(.*\.)?({key})$", name))
        value = next(values, config.get(default, 8))
    except (re.error, RecursionError, OverflowError, TypeError):
        raise ChuanError(f"{folder / CONFIG} has a {pattern} that cannot be read; correct it") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:  # NaN is not less
        raise ChuanError(f"{folder / CONFIG} gives {name} the {default} {value!r:.80}; correct it")
    return value


def _divisor(config: Mapping[str, Any], rank: int) -> float:
    return math.sqrt(rank) if config.get("use_rslora") else rank


def _check_layout(pairs: Mapping[str, Pair], source: Path, to: LayoutName) -> None:
    leaves = {_leaf(name) for name in pairs}
    packed, split = "W_pack" in leaves, not leaves.isdisjoint(_PARTS)
    if packed and split:
        raise ChuanError(
            f"{source} changes W_pack and also q_proj, k_proj or v_proj, which no model has; fetch it again"
        )
    if not (packed or split):
        raise ChuanError(f"{source} changes none of q, k and v and fits both layouts; use it as it is")
    if packed == (to == "baichuan"):
        raise ChuanError(f"{source} is already in the {to} layout; use it as it is")


def _split(pairs: Mapping[str, Pair], folder: Path) -> dict[str, Pair]:
    """Every W_pack as three layers with its A; other layers stay."""
    done = {name: pair for name, pair in pairs.items() if _leaf(name) != "W_pack"}
    for name in pairs.keys() - done.keys():
        pair = pairs[name]
        _check_shape(name, pair, (3 * pair.a.shape[1], pair.a.shape[1]), folder)
        for part, rows in zip(_PARTS, pair.b.chunk(3), strict=True):
            done[name.removesuffix("W_pack") + part] = replace(pair, b=rows)
    return done


def _join(pairs: Mapping[str, Pair], folder: Path, config: Mapping[str, Any]) -> dict[str, Pair]:
    """What changes q, k and v as one layer, W_pack; other layers stay."""
    done = {name: pair for name, pair in pairs.items() if _leaf(name) not in _PARTS}
    for prefix in {name.removesuffix(_leaf(name)) for name in pairs.keys() - done.keys()}:
        parts = {part: pairs[prefix + part] for part in _PARTS if prefix + part in pairs}
        width = max(pair.a.shape[1] for pair in parts.values())
        for part, pair in parts.items():
            _check_shape(prefix + part, pair, (width, width), folder)
        done[f"{prefix}W_pack"] = _pack(parts, config)
    return done


def _check_shape(name: str, pair: Pair, expected: tuple[int, int], folder: Path) -> None:
    found = (pair.b.shape[0], pair.a.shape[1])
    if found != expected:
        sizes = f"is {found[0]} x {found[1]}, and Baichuan's, without grouped queries, {expected[0]} x {expected[1]}"
        raise ChuanError(f"{folder}: {name} {sizes}; this adapter is for another model")


def _pack(parts: Mapping[str, Pair], config: Mapping[str, Any]) -> Pair:
    """One pair for the rows of q, k and v; a part that the adapter leaves alone is rows of zeros.

    Parts with one A and one scaling share them; otherwise each has its own rows of A and its own columns of B.
    """
    first, rank = next(iter(parts.values())), sum(pair.a.shape[0] for pair in parts.values())
    shared = all(_equal(pair, replace(first, b=pair.b)) for pair in parts.values())
    scaling = max((pair.scaling for pair in parts.values()), key=abs)
    nothing = first.b.new_zeros(first.b.shape[0], first.a.shape[0] if shared else 0)
    blocks = [_scale(parts[part], scaling) if part in parts else nothing for part in _PARTS]
    if shared:
        return replace(first, b=torch.cat(blocks))
    alpha = scaling * _divisor(config, rank)
    alpha = round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-12) else alpha
    return Pair(torch.cat([pair.a for pair in parts.values()]), torch.block_diag(*blocks), alpha, scaling)


def _scale(pair: Pair, scaling: float) -> Tensor:
    """A part's B for the scaling that all parts will have; in float32 where 16 bits would round it."""
    exact = pair.b.double() * (pair.scaling / scaling if scaling else 1.0)
    kept = exact.to(pair.b.dtype)
    return kept if torch.equal(kept.double(), exact) else exact.to(torch.promote_types(kept.dtype, torch.float32))


def _describe(config: Mapping[str, Any], pairs: Mapping[str, Pair]) -> dict[str, Any]:
    """The `adapter_config.json` of these layers. Where some layers are left out or differ, PEFT reads full names."""
    sizes: dict[str, tuple[int, float]] = {name: (pair.a.shape[0], pair.alpha) for name, pair in pairs.items()}
    leaves = {_leaf(name) for name in pairs}
    everywhere = len(pairs) == len(leaves) * len({name.split(".")[2] for name in pairs})
    limited = config.get("layers_to_transform") not in (None, []) or config.get("exclude_modules")
    # A dot: the adapter names single layers, or is a pattern that may.
    whole = everywhere and not limited and "." not in str(config.get("target_modules"))
    rank, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    if len(set(sizes.values())) == 1:
        rank, alpha = next(iter(sizes.values()))
    ranks, alphas = dict[str, int](), dict[str, float]()
    for name in sorted(pairs):
        same = {size for other, size in sizes.items() if _leaf(other) == _leaf(name)}
        key = _leaf(name) if len(same) == 1 else name
        ranks[key], alphas[key] = sizes[name]
    made: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "target_modules": sorted(leaves if whole else pairs)}
    made["rank_pattern"] = {key: own for key, own in ranks.items() if own != rank}
    made["alpha_pattern"] = {key: own for key, own in alphas.items() if own != alpha}
    made |= {} if whole else dict.fromkeys(("layers_to_transform", "layers_pattern", "exclude_modules"))
    if config.get("init_lora_weights") in ("eva", "orthogonal"):
        made["init_lora_weights"] = True  # those two want particular ranks, and what they set is overwritten anyway
    return {**config, **made}


def _check_same(expected: Mapping[str, Pair], found: Mapping[str, Pair], target: Path) -> None:
    """Refuses what was read back as another change than was meant, in float64."""
    for name in sorted(expected.keys() | found.keys()):
        meant, got = expected.get(name), found.get(name)
        if meant and got and _equal(meant, got):
            continue
        change, written = (pair.multiply() if pair else torch.zeros((), dtype=torch.float64) for pair in (meant, got))
        error, size = float((change - written).abs().max()), float(change.abs().max())
        if not error <= 1e-6 * size:
            amount = f"{error:.1e} where the largest entry is {size:.1e}"
            raise ChuanError(f"{target} was not written: {name} would be off by {amount}; try again, or {_INSTEAD}")


def _equal(one: Pair, other: Pair) -> bool:
    """Whether two pairs are the same in every number and type."""
    halves = ((one.a, other.a), (one.b, other.b))
    return one.scaling == other.scaling and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in halves)


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
