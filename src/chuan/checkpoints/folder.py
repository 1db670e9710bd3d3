"""Model folders: Llama's (Hugging Face) and both generations of Baichuan.

In: a folder. Out: a `Checkpoint`. Reads configuration, tokenizer and weights; `.py` files are never looked at.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chuan.checkpoints.checkpoint import Checkpoint
from chuan.checkpoints.front_matter import read_front_matter
from chuan.checkpoints.layouts import Layout, build_baichuan_layout, build_llama_layout
from chuan.checkpoints.stored import StoredWeights
from chuan.checkpoints.weights import open_tensor_files
from chuan.errors import ChuanError
from chuan.json_file import read_json, read_json_if_there
from chuan.model.config import ModelConfig
from chuan.tokenizer.folder import load_folder_tokenizer, read_special_tokens

BAICHUAN2_VOCABULARY = 125696
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def open_folder(folder: Path) -> Checkpoint:
    """Reads what the folder says about itself."""
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ChuanError(
            f"{folder} is a LoRA adapter and no model; `chuan merge` makes one of it and its base, `chuan convert` "
            "changes its layout"
        )
    raw = read_json(folder / "config.json")
    model_type = raw.get("model_type")
    if model_type == "baichuan" or (model_type is None and "aichuan" in str(raw.get("architectures"))):
        kind, config, layout = _read_baichuan(folder, raw)
    elif model_type == "llama":
        config = ModelConfig.from_dict(raw)
        kind, layout = "Llama folder", build_llama_layout(config)
    else:
        raise ChuanError(f"{folder} holds a model of type {model_type!r:.60}; Chuan opens llama and baichuan")
    generation_config = _read_generation_config(folder, raw)
    tokenizer_config = read_json_if_there(folder / "tokenizer_config.json")
    special = read_special_tokens(folder)
    role_ids = read_role_ids(generation_config, config.vocab_size)
    return Checkpoint(
        path=folder,
        kind=kind,
        config=config,
        layout=layout,
        open_weights=lambda: StoredWeights(open_tensor_files(folder)),
        load_tokenizer=functools.partial(
            load_folder_tokenizer,
            folder,
            special,
            role_ids or (),
            vocab_size=config.vocab_size,
            # Left unsaid, Llama adds a bos and Baichuan does not.
            add_bos=model_type == "llama" and role_ids is None,
            prefer_model=role_ids is not None,  # which make it a Baichuan chat model
        ),
        bits=_read_bits(folder, raw),
        generation_config=generation_config,
        chat_template=_read_template(folder, tokenizer_config),
        special=special,
        role_ids=role_ids,
        read_card=functools.partial(read_front_matter, folder),
    )


def read_role_ids(generation_config: Mapping[str, Any], vocab_size: int) -> tuple[int, int] | None:
    """The (user, assistant) ids of the Baichuan chat format, where `generation_config.json` has them."""
    ids = (generation_config.get("user_token_id"), generation_config.get("assistant_token_id"))
    if ids == (None, None):
        return None
    if any(isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < vocab_size for i in ids) or ids[0] == ids[1]:
        raise ChuanError(
            f"generation_config.json gives user_token_id {ids[0]!r} and assistant_token_id {ids[1]!r}; both must be "
            f"different ids below the vocabulary of {vocab_size}"
        )
    return ids  # type: ignore[return-value]


def _read_generation_config(folder: Path, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The file, or without one, as transformers has it, the special ids of `config.json`."""
    path = folder / "generation_config.json"
    if path.is_file():
        return read_json(path)
    return {key: raw[key] for key in SPECIAL_IDS if raw.get(key) is not None}


def _read_baichuan(folder: Path, raw: Mapping[str, Any]) -> tuple[str, ModelConfig, Layout]:
    if raw.get("hidden_size") == 5120 or "max_position_embeddings" not in raw:
        raise ChuanError(
            f"{folder} is a Baichuan model with ALiBi positions (13B), which is not supported yet; use a 7B"
        )
    architectures = raw.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    if name not in ("BaiChuanForCausalLM", "BaichuanForCausalLM"):
        known = {"64000": "BaiChuanForCausalLM", str(BAICHUAN2_VOCABULARY): "BaichuanForCausalLM"}
        name = known.get(str(raw.get("vocab_size")))
        if name is None:
            raise ChuanError(
                f"{folder}/config.json does not say which generation it is; set architectures to "
                '["BaiChuanForCausalLM"] (first) or ["BaichuanForCausalLM"] (second)'
            )
    # model_max_length is how many tokens the chat budgets for; the two agree in every published file.
    length = raw.get("model_max_length") or raw["max_position_embeddings"]
    config = ModelConfig.from_dict(
        {"hidden_act": "silu", "rms_norm_eps": 1e-6} | dict(raw) | {"max_position_embeddings": length}
    )
    if config.num_key_value_heads != config.num_attention_heads or config.attention_bias or config.mlp_bias:
        raise ChuanError(f"{folder}/config.json describes no Baichuan model: W_pack has as many keys as queries")
    second = name == "BaichuanForCausalLM"
    kind = "Baichuan 2 folder" if second else "Baichuan folder"
    return kind, config, build_baichuan_layout(config, normalized_head=second)


def _read_bits(folder: Path, raw: Mapping[str, Any]) -> int:
    quantization = raw.get("quantization_config")
    if quantization is None:
        return 16
    values = quantization if isinstance(quantization, Mapping) else {}
    # The published 4-bit folder names no method; what its files really are is told by their names.
    method = values.get("quant_method") or ("bitsandbytes" if values else quantization)
    if method == "bitsandbytes" and (values.get("load_in_8bit") or values.get("load_in_4bit")):
        return 8 if values.get("load_in_8bit") else 4
    if method == "compressed-tensors":
        groups = values.get("config_groups")
        weights = [g.get("weights") for g in groups.values()] if isinstance(groups, Mapping) else []
        if len(weights) == 1 and isinstance(weights[0], Mapping):
            asked = [weights[0].get(key) for key in ("num_bits", "type", "strategy", "symmetric")]
            if asked == [8, "int", "channel", True] or (asked == [4, "int", "group", True] and not _has_order(weights)):
                return int(asked[0])
    raise ChuanError(
        f"{folder} is quantized in a way that this version does not read ({method!r:.40}); use the 16-bit folder, "
        "with --bits 8 (bits=8) if memory is short"
    )


def _has_order(weights: list[Any]) -> bool:
    """Activation ordering permutes the groups; its files carry `weight_g_idx`."""
    return bool(weights[0].get("actorder"))


def _read_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return _read_bytes(path).decode("utf-8")
        except UnicodeDecodeError:
            raise ChuanError(f"{path} is not UTF-8; fetch it again") from None
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = [t.get("template") for t in template if isinstance(t, Mapping) and t.get("name") == "default"]
        template = named[0] if named else None
    if not isinstance(template, str):
        return None
    try:
        template.encode("utf-8")
    except UnicodeEncodeError:
        raise ChuanError(f"{folder} has a chat template with half a character in it; fetch it again") from None
    return template


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ChuanError(f"{path} cannot be read: {error.strerror}") from None
