"""Writing a model folder: the standard Llama layout, or Baichuan's own.

In: a decoder, its tokenizer and what goes beside them. Out: a folder that is either whole or not there. Shards are
written one at a time; every tensor's checksum travels in its file's metadata.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from chuan.checkpoints.layouts import list_weights
from chuan.checkpoints.weights import checksum
from chuan.errors import ChuanError, first_line
from chuan.model.decoder import Decoder
from chuan.quantization.int8 import Int8Linear
from chuan.tokenizer.tokenizer import Tokenizer

LayoutName = Literal["llama", "baichuan"]
_SHARD_BYTES = 4 << 30


@dataclass(frozen=True)
class Extras:
    """What a folder carries beside weights and tokenizer."""

    generation_config: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    special: Mapping[str, str] = field(default_factory=dict)


def save_folder(
    folder: str | os.PathLike[str],
    decoder: Decoder,
    tokenizer: Tokenizer | None,
    extras: Extras,
    layout: LayoutName = "llama",
    beside_others: bool = False,
) -> Path:
    """Writes the folder under a temporary name, flushes it to disk, and renames it.

    Refuses a folder that holds files; with `beside_others` it refuses only one that holds a model, and its other files
    (a tokenizer's) stay.
    """
    target = Path(folder)
    _check_free(target, beside_others)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise ChuanError(f"{target} cannot be written: {error.strerror}") from None
    try:
        _save_weights(temporary, decoder, layout)
        _save_json(temporary / "config.json", _describe(decoder, layout, extras.generation_config))
        if extras.generation_config:
            _save_json(temporary / "generation_config.json", dict(extras.generation_config))
        if extras.chat_template:
            (temporary / "chat_template.jinja").write_text(extras.chat_template, encoding="utf-8")
        if tokenizer is not None:
            _save_tokenizer(temporary, tokenizer, extras.special)
        temporary.chmod(0o755)  # temporary folders and safetensors' files are made for their owner alone
        for path in temporary.iterdir():
            path.chmod(0o644)
            _flush(path)
        _flush(temporary)
        if target.is_dir() and any(target.iterdir()):
            # Last the configuration: without it nothing opens what a cut would leave.
            for path in sorted(temporary.iterdir(), key=lambda path: path.name == "config.json"):
                path.rename(target / path.name)
            _flush(target)
        else:
            temporary.rename(target)  # replaces an empty folder
        _flush(target.parent)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise ChuanError(
            f"{target} was not written: {reason}; nothing is left of it, free some space and try again"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _check_free(target: Path, beside_others: bool) -> None:
    taken = target.exists() and not target.is_dir()
    if target.is_dir():
        names = {path.name for path in target.iterdir()}
        if beside_others:
            names = {name for name in names if name == "config.json" or name.endswith((".safetensors", ".bin"))}
        taken = bool(names)
    if taken:
        raise ChuanError(f"{target} is there already and not empty; choose another folder or remove it")


def _save_weights(folder: Path, decoder: Decoder, layout: LayoutName) -> None:
    shards: list[dict[str, list[Tensor]]] = [{}]
    sizes = [0]
    for name, tensors in _list_tensors(decoder, layout):
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if sizes[-1] and sizes[-1] + size > _SHARD_BYTES:
            shards.append({})
            sizes.append(0)
        shards[-1][name] = tensors
        sizes[-1] += size
    if len(shards) == 1:
        _save_shard(folder / "model.safetensors", shards[0])
        return
    weight_map: dict[str, str] = {}
    for index, shard in enumerate(shards, start=1):
        file = f"model-{index:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(shard, file)
        _save_shard(folder / file, shard)
    index_table = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
    _save_json(folder / "model.safetensors.index.json", index_table)


def _save_shard(path: Path, tensors: Mapping[str, list[Tensor]]) -> None:
    ready = {name: torch.cat([p.detach().cpu() for p in parts]).contiguous() for name, parts in tensors.items()}
    checksums = json.dumps({name: checksum(tensor) for name, tensor in ready.items()})
    save_file(ready, path, metadata={"format": "pt", "crc32": checksums})


def _list_tensors(decoder: Decoder, layout: LayoutName) -> Iterator[tuple[str, list[Tensor]]]:
    """Names as the layout has them, each with the tensors whose rows it joins; int8 linears give weights and scales."""
    for name in list_weights(decoder.config):
        module_name, _, attribute = name.rpartition(".")
        if layout == "baichuan" and module_name.endswith((".k_proj", ".v_proj")):
            continue
        modules = [decoder.get_submodule(module_name)]
        if layout == "baichuan" and module_name.endswith(".q_proj"):
            parent = module_name.removesuffix("q_proj")
            modules += [decoder.get_submodule(parent + other) for other in ("k_proj", "v_proj")]
            name = f"{parent}W_pack.{attribute}"
        yield name, [getattr(module, attribute) for module in modules]
        scales = [module.weight_scale for module in modules if isinstance(module, Int8Linear)]
        if scales and attribute == "weight":
            yield f"{name}_scale", scales


def _describe(decoder: Decoder, layout: LayoutName, generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` of the folder."""
    config = decoder.config.to_dict()
    dtype = str(decoder.model.embed_tokens.weight.dtype).removeprefix("torch.")
    if layout == "baichuan":
        # The first generation's class: its head is plain, as ours is once the second's NormHead is folded into it.
        names = {"architectures": ["BaiChuanForCausalLM"], "model_type": "baichuan"}
        config["model_max_length"] = config["max_position_embeddings"]
    else:
        names = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    config |= names | {"torch_dtype": dtype}
    config |= {key: generation_config.get(key) for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
    if any(isinstance(module, Int8Linear) for module in decoder.modules()):
        config["quantization_config"] = _describe_int8()
    return config


def _describe_int8() -> dict[str, Any]:
    """compressed-tensors' name for int8 weights with a scale an output channel (W8A8, dynamic activations)."""
    common = {"num_bits": 8, "type": "int", "symmetric": True}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": common | {"strategy": "channel", "dynamic": False},
                "input_activations": common | {"strategy": "token", "dynamic": True},
            }
        },
    }


def _save_tokenizer(folder: Path, tokenizer: Tokenizer, special: Mapping[str, str]) -> None:
    model_file = tokenizer.model_file()
    if model_file is not None:
        (folder / "tokenizer.model").write_bytes(model_file)
    try:
        description = tokenizer.build_json()
        if tokenizer.prompt_prefix and description.get("post_processor") is None:
            description["post_processor"] = _describe_prefix(tokenizer)
        _save_json(folder / "tokenizer.json", description)
    except ChuanError:
        # No exact one exists; tokenizer.model is then the one truth, and a wrong tokenizer.json would shadow it.
        if model_file is None:
            raise
    names = dict(special)
    for role, token_id in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id)):
        by_id = {index: name for name, index in tokenizer.control_pieces.items()}
        if token_id in by_id:
            names.setdefault(role, by_id[token_id])
    table = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bool(tokenizer.prompt_prefix),
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    _save_json(folder / "tokenizer_config.json", table | names)


def _describe_prefix(tokenizer: Tokenizer) -> dict[str, Any]:
    """The post-processor of a `tokenizer.json` that puts the prompt's prefix (a bos) in front of a text."""
    names = {index: name for name, index in tokenizer.control_pieces.items()}
    prefix = {names[index]: index for index in tokenizer.prompt_prefix}
    before = [{"SpecialToken": {"id": name, "type_id": 0}} for name in prefix]
    first, second = ({"Sequence": {"id": name, "type_id": type_id}} for type_id, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [*before, first],
        "pair": [*before, first, second],
        "special_tokens": {name: {"id": name, "ids": [index], "tokens": [name]} for name, index in prefix.items()},
    }


def _save_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _flush(path: Path) -> None:
    """Forces a file or folder to disk; some file systems cannot flush folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)
