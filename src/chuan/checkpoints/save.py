"""Writing a model folder: the standard Llama layout, or Baichuan's own.

In: a source of weights, its tokenizer and what goes beside them. Out: a folder that is either whole or not there. One
shard is in memory at a time; every tensor's checksum travels in its file's metadata. Before the folder gets its name it
is opened again and must give the logits that were meant.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from chuan.checkpoints.bitsandbytes import describe_codes
from chuan.checkpoints.card import Origin, write_card
from chuan.checkpoints.checkpoint import Progress
from chuan.checkpoints.folder import BAICHUAN2_VOCABULARY, SPECIAL_IDS, open_folder
from chuan.checkpoints.layouts import (
    IGNORED,
    Layout,
    build_baichuan_layout,
    build_llama_layout,
    group_by_source,
    has_unit_rows,
    list_weights,
)
from chuan.checkpoints.probe import Difference
from chuan.checkpoints.source import Check, WeightSource, describe_check
from chuan.checkpoints.stored import name_tensors
from chuan.checkpoints.weights import checksum, save_tensors
from chuan.errors import ChuanError
from chuan.json_file import render_json, save_json
from chuan.model.config import ModelConfig
from chuan.model.memory import estimate_weights
from chuan.model.rope import build_frequencies
from chuan.quantization.codebook import CodebookLinear
from chuan.quantization.int4 import Int4Linear
from chuan.quantization.int8 import Int8Linear
from chuan.quantization.linear import QuantizedLinear
from chuan.quantization.methods import Stored, is_quantizable
from chuan.staging import check_free, check_space, staged_folder
from chuan.tokenizer.folder import save_tokenizer
from chuan.tokenizer.tokenizer import Tokenizer

LayoutName = Literal["llama", "baichuan"]
_SHARD_BYTES = 2 << 30


@dataclass(frozen=True)
class Extras:
    """What a model carries beside weights and tokenizer."""

    generation_config: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    special: Mapping[str, str] = field(default_factory=dict)
    origin: Origin | None = None


def save_folder(
    folder: str | os.PathLike[str],
    source: WeightSource,
    tokenizer: Tokenizer | None,
    extras: Extras,
    layout: LayoutName = "llama",
    beside_others: bool = False,
    progress: Progress | None = None,
) -> Difference:
    """Writes the folder under a temporary name, opens it again, flushes it to disk, and renames it.

    Returns how far its logits lie from the source's.

    Refuses a folder that holds files; with `beside_others` it refuses only one that holds a model, and its other files
    (a tokenizer's) stay. `progress` hears (steps done, of how many).
    """
    target = Path(folder)
    table = _build_layout(source.config, layout)
    _check_target(target, beside_others)
    with staged_folder(target, beside_others) as temporary:
        check_space(target, _estimate_size(source))
        check = Check(source.config, 2 * len(list_weights(source.config)), progress)
        written = _Shards(temporary)
        for name, names in group_by_source(table).items():
            written.add(name, [check.pass_on(source, part) for part in names])
        normalized = layout == "baichuan" and written.unit_head and source.config.vocab_size == BAICHUAN2_VOCABULARY
        if layout == "baichuan" and not normalized:
            # The first generation's class keeps its frequencies in the file; transformers 5 leaves what a file lacks
            # without a value.
            for layer in range(source.config.num_hidden_layers):
                name = f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
                written.add(name, [build_frequencies(source.config)[0]])
        written.finish()
        config = _describe(source, layout, normalized, extras.generation_config) | written.describe_quantization()
        save_json(temporary / "config.json", config)
        if extras.generation_config:
            save_json(temporary / "generation_config.json", dict(extras.generation_config))
        if extras.chat_template:
            (temporary / "chat_template.jinja").write_text(extras.chat_template, encoding="utf-8")
        if tokenizer is not None:
            save_tokenizer(temporary, tokenizer, extras.special)
        difference = check.reopen(open_folder(temporary), target)
        if not beside_others:
            made = {"llama": "a Llama folder", "baichuan": "a Baichuan folder"}[layout]
            facts = {"written as": made, "weights": written.describe_precision(source.dtype)}
            write_card(temporary, extras.origin, facts | {"checked": describe_check(difference)})
    return difference


def _check_target(target: Path, beside_others: bool) -> None:
    if not (beside_others and target.is_dir()):
        check_free(target)
        return
    try:
        names = {path.name for path in target.iterdir()}
    except OSError as error:
        raise ChuanError(f"{target} cannot be read: {error.strerror}; choose another folder") from None
    if any(name == "config.json" or name.endswith((".safetensors", ".bin")) for name in names):
        raise ChuanError(f"{target} is there already and not empty; choose another folder or remove it")


def _estimate_size(source: WeightSource) -> int:
    """Bytes of the weights, floats in their own type."""
    bits, width = source.stored_bits, source.dtype.itemsize
    shapes = list_weights(source.config)
    floats = sum(math.prod(shape) for name, shape in shapes.items() if bits == 16 or not is_quantizable(name))
    return estimate_weights(source.config, bits) + (width - 2) * floats


def _build_layout(config: ModelConfig, layout: LayoutName) -> Layout:
    if layout == "llama":
        return build_llama_layout(config)
    plain = (
        config.num_key_value_heads == config.num_attention_heads
        and config.num_attention_heads * config.head_dim == config.hidden_size
        and not (config.attention_bias or config.mlp_bias or config.tie_word_embeddings)
        and config.rope_theta == 10000.0
        and config.rope_scaling is None
    )
    if not plain:
        raise ChuanError(
            "this model is no Baichuan: that layout knows no grouped queries, biases, tied embeddings or other RoPE; "
            "write a Llama folder"
        )
    return build_baichuan_layout(config, normalized_head=False)


class _Shards:
    """Safetensors files, written as they fill; named once it is known how many there are."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tensors: dict[str, Tensor] = {}
        self._size = self._total = 0
        self._files: list[list[str]] = []
        self._kinds: dict[type, QuantizedLinear] = {}
        self._floats: list[str] = []
        self.unit_head = False

    def add(self, name: str, parts: list[Stored]) -> None:
        """A weight of the file, from the rows that it joins."""
        stored = parts[0] if len(parts) == 1 else _join(parts)
        if isinstance(stored, QuantizedLinear):
            self._kinds[type(stored)] = stored
        elif name.endswith("proj.weight") or name.endswith("W_pack.weight"):
            self._floats.append(name.removesuffix(".weight"))
        if name == "lm_head.weight" and isinstance(stored, Tensor):
            self.unit_head = has_unit_rows(stored)
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in name_tensors(name, stored).items()}
        size = sum(tensor.nbytes for tensor in tensors.values())
        if self._size and self._size + size > _SHARD_BYTES:
            self._write()
        self._tensors |= tensors
        self._size += size
        self._total += size

    def finish(self) -> None:
        """Writes what is left, and the index where there is more than one file."""
        self._write()
        if len(self._files) == 1:
            self._part(0).rename(self._folder / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for index, names in enumerate(self._files):
            file = f"model-{index + 1:05}-of-{len(self._files):05}.safetensors"
            self._part(index).rename(self._folder / file)
            weight_map |= dict.fromkeys(names, file)
        index_table = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
        save_json(self._folder / "model.safetensors.index.json", index_table)

    def describe_quantization(self) -> dict[str, Any]:
        """The `quantization_config` entry of `config.json`, or nothing."""
        if not self._kinds:
            return {}
        if len(self._kinds) > 1:
            raise ChuanError("the weights mix 8 and 4 bits, which no engine opens; choose one with --bits")
        (example,) = self._kinds.values()
        if isinstance(example, CodebookLinear):
            return {"quantization_config": describe_codes(example.kind) | {"llm_int8_skip_modules": self._ignored()}}
        return {"quantization_config": _describe_compressed(example) | {"ignore": self._ignored()}}

    def describe_precision(self, dtype: torch.dtype) -> str:
        """For people."""
        names: Mapping[type, Callable[[Any], str]] = {
            Int8Linear: lambda _: "int8, one scale an output (compressed-tensors)",
            Int4Linear: lambda linear: f"int4 in groups of {linear.group_size} (compressed-tensors)",
            CodebookLinear: lambda linear: f"{linear.kind} in blocks of {linear.block} (bitsandbytes)",
        }
        floats = str(dtype).removeprefix("torch.")
        small = [names[kind](example) for kind, example in self._kinds.items()]
        return f"{small[0]}; embeddings, norms and head {floats}" if small else floats

    def _ignored(self) -> list[str]:
        return ["lm_head", *self._floats]

    def _write(self) -> None:
        # Not of what nobody reads: a file counts as verified once all that has a checksum was read.
        read = {name: tensor for name, tensor in self._tensors.items() if not IGNORED.fullmatch(name)}
        checksums = render_json({name: checksum(tensor) for name, tensor in read.items()})
        path = self._part(len(self._files))
        save_tensors(path, self._tensors, {"format": "pt", "crc32": checksums})
        self._files.append(list(self._tensors))
        self._tensors, self._size = {}, 0

    def _part(self, index: int) -> Path:
        return self._folder / f"shard-{index}"


def _join(parts: list[Stored]) -> Stored:
    """Rows one behind the other; all floats, or all quantized in the same way."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    same = [part for part in parts if type(part) is type(first)]
    if len(same) != len(parts):
        raise ChuanError("q, k and v are quantized in different ways and cannot be joined; use --bits 16 (bits=16)")
    return first.join_rows(same)


def _describe(
    source: WeightSource, layout: LayoutName, normalized: bool, generation_config: Mapping[str, Any]
) -> dict[str, Any]:
    """The `config.json` of the folder."""
    config = source.config.to_dict()
    if layout == "baichuan":
        # The second generation's class normalizes the head; the first's takes it as it is, which is right for any head.
        class_name = "BaichuanForCausalLM" if normalized else "BaiChuanForCausalLM"
        names = {"architectures": [class_name], "model_type": "baichuan"}
        config["model_max_length"] = config["max_position_embeddings"]
    else:
        names = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    config |= names | {"torch_dtype": str(source.dtype).removeprefix("torch.")}
    return config | {key: generation_config.get(key) for key in SPECIAL_IDS}


def _describe_compressed(example: QuantizedLinear) -> dict[str, Any]:
    """compressed-tensors' names: W8A8 with dynamic activations, or W4A16 in groups."""
    weights: dict[str, Any] = {"num_bits": example.bits, "type": "int", "symmetric": True, "dynamic": False}
    group: dict[str, Any] = {"targets": ["Linear"]}
    if isinstance(example, Int4Linear):
        group["weights"] = weights | {"strategy": "group", "group_size": example.group_size}
    else:
        group["weights"] = weights | {"strategy": "channel"}
        activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        group["input_activations"] = activations
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if example.bits == 8 else "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
    }
