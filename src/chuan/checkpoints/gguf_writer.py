"""Writing a GGUF of the architecture `llama`, which every program built on llama.cpp opens.

In: a source of weights, a tokenizer and what goes beside them. Out: one file, whole or not there: written tensor by
tensor, opened again, compared by the logits of a probe, flushed, renamed. The gguf library lays out the file and
quantizes; the names and the order of rows are `layouts`'.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args

import gguf
import numpy as np
import torch
from gguf.quants import dequantize, quantize
from torch import Tensor

from chuan.checkpoints.card import name_bases
from chuan.checkpoints.checkpoint import Progress
from chuan.checkpoints.gguf import GENERATION_KEY, open_gguf, recognise_llama3
from chuan.checkpoints.gguf_vocabulary import Vocabulary, build_vocabulary
from chuan.checkpoints.layouts import build_gguf_layout, list_weights
from chuan.checkpoints.probe import Difference
from chuan.checkpoints.save import Extras
from chuan.checkpoints.source import Check, WeightSource
from chuan.errors import ChuanError, escape_unprintable
from chuan.json_file import render_json
from chuan.model.config import ModelConfig, RopeScaling
from chuan.model.rope import build_frequencies
from chuan.quantization import methods
from chuan.staging import check_free, check_space, staged_file
from chuan.tokenizer.tokenizer import Tokenizer

GGUFType = Literal["f16", "bf16", "q8_0", "q4_0", "q4_1"]
GGUF_TYPES = get_args(GGUFType)
_Type = gguf.GGMLQuantizationType
_BLOCK = 32
_FILE_TYPES = {
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
    "q4_1": gguf.LlamaFileType.MOSTLY_Q4_1,
}
_SCALINGS = {"linear": gguf.RopeScalingType.LINEAR, "yarn": gguf.RopeScalingType.YARN}
_LARGEST = 1 << 31  # of a number in the header
_FLOATS = {_Type.F32: torch.float32, _Type.F16: torch.float16, _Type.BF16: torch.bfloat16}


def save_gguf(
    path: Path,
    source: WeightSource,
    tokenizer: Tokenizer,
    extras: Extras,
    kind: GGUFType,
    role_ids: tuple[int, int] | None,
    progress: Progress | None = None,
) -> Difference:
    """Writes `path`; returns how far its logits lie from the source's. `role_ids` become control tokens."""
    check_free(path)
    _check_rope(source.config)
    layout = build_gguf_layout(source.config)
    shapes = list_weights(source.config)
    types = {name: _choose_type(name, shape, kind, source.config) for name, shape in shapes.items()}
    sizes = {name: gguf.quant_shape_to_byte_shape(shape, types[name]) for name, shape in shapes.items()}
    defaults = extras.generation_config
    vocabulary = build_vocabulary(tokenizer, extras.special, role_ids or (), defaults).padded(source.config.vocab_size)
    with staged_file(path) as temporary:
        check_space(path, int(sum(np.prod(size) for size in sizes.values())))
        writer = gguf.GGUFWriter(temporary, "llama")
        _add_shape(writer, source.config, _FILE_TYPES[kind])
        _add_vocabulary(writer, vocabulary)
        _add_extras(writer, path.stem, extras, role_ids)
        factors = _llama3_factors(source.config)
        if factors is not None:
            writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
        for name in shapes:
            nbytes = int(np.prod(sizes[name]))
            writer.add_tensor_info(layout[name].source, sizes[name], np.dtype(np.uint8), nbytes, types[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        check = Check(source.config, 2 * len(shapes), progress)
        for name in shapes:
            undo = layout[name].undo
            data, meant, lossless = _pack(check.read(source, name), types[name], undo)
            writer.write_tensor_data(data)
            check.note_written(name, layout[name].take(meant, torch.float32), lossless)
        writer.close()
        return check.reopen(open_gguf(temporary), path)


def _choose_type(name: str, shape: tuple[int, ...], kind: GGUFType, config: ModelConfig) -> Any:
    """Norms and biases stay float32. At 4 bits the head gets 8: it is the matrix that answers depend on most."""
    if len(shape) == 1:
        return _Type.F32
    head = name == "lm_head.weight" or (config.tie_word_embeddings and name == "model.embed_tokens.weight")
    chosen = _Type.Q8_0 if head and kind.startswith("q4") else _Type[kind.upper()]
    if kind.startswith("q") and shape[1] % _BLOCK:
        raise ChuanError(f"{kind} needs widths that are multiples of {_BLOCK}; {name} has {shape[1]}: use f16 or bf16")
    return chosen


def _pack(stored: methods.Stored, kind: Any, undo: Any) -> tuple[np.ndarray, Tensor, bool]:
    """The bytes of a weight, what they mean (float32, rows as in the file), and whether nothing was rounded."""
    weight = methods.dequantize(stored)
    rows = weight if undo is None else undo(weight)
    if kind in _FLOATS:
        narrowed = rows.to(_FLOATS[kind]).contiguous()
        if not torch.isfinite(narrowed).all():
            raise ChuanError("a weight is too large for float16; use --type bf16")
        lossless = weight.dtype == narrowed.dtype or torch.equal(narrowed.to(rows.dtype), rows)
        return narrowed.view(torch.uint8).numpy(), narrowed, lossless
    data = quantize(rows.float().contiguous().numpy(), kind)
    return data, torch.from_numpy(np.array(dequantize(data, kind))).reshape(rows.shape), False


def _add_shape(writer: gguf.GGUFWriter, config: ModelConfig, file_type: Any) -> None:
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    scaling = config.rope_scaling
    if scaling is None or scaling.rope_type == "llama3":
        return
    writer.add_rope_scaling_type(_SCALINGS[scaling.rope_type])
    writer.add_rope_scaling_factor(scaling.factor)
    if scaling.original_max_position_embeddings is not None:
        writer.add_rope_scaling_orig_ctx_len(scaling.original_max_position_embeddings)


def _check_rope(config: ModelConfig) -> None:
    """Refuses what a GGUF has no words for, or none that mean the same to llama.cpp."""
    scaling = config.rope_scaling
    if scaling is None:
        return
    said = scaling.rope_type in _SCALINGS
    if scaling.rope_type == "yarn":
        plain = RopeScaling("yarn", scaling.factor, scaling.original_max_position_embeddings, beta_fast=32, beta_slow=1)
        found = build_frequencies(dataclasses.replace(config, rope_scaling=scaling))
        expected = build_frequencies(dataclasses.replace(config, rope_scaling=plain))
        said = torch.equal(found[0], expected[0]) and found[1] == expected[1]
    factors = _llama3_factors(config)
    if factors is not None:
        plain_config = dataclasses.replace(config, rope_scaling=None)
        recognised = recognise_llama3(plain_config, torch.from_numpy(factors))
        said = recognised is not None and recognised.rope_scaling == scaling
    if not said:
        raise ChuanError(
            f"a GGUF cannot say this model's {scaling.rope_type} RoPE scaling with these details; write a Llama folder"
        )


def _llama3_factors(config: ModelConfig) -> np.ndarray | None:
    """How much each frequency is slowed, which is how a GGUF says Llama 3's scaling; None for other models."""
    if config.rope_scaling is None or config.rope_scaling.rope_type != "llama3":
        return None
    plain = dataclasses.replace(config, rope_scaling=None)
    factors: np.ndarray = (build_frequencies(plain)[0] / build_frequencies(config)[0]).float().numpy()
    return factors


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_token_list(vocabulary.pieces)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.model == "llama":
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    else:
        writer.add_tokenizer_pre(vocabulary.pre)
        writer.add_token_merges(vocabulary.merges)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(False)
    adders = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "unknown": writer.add_unk_token_id,
        "padding": writer.add_pad_token_id,
    }
    for role, index in vocabulary.ids.items():
        adders[role](index)


def _add_extras(writer: gguf.GGUFWriter, name: str, extras: Extras, role_ids: tuple[int, int] | None) -> None:
    """Template, generation defaults (under llama.cpp's names, and whole for ourselves), where it came from."""
    if extras.chat_template:
        writer.add_chat_template(extras.chat_template)
    if role_ids is not None:
        writer.add_eot_token_id(role_ids[0])  # an answer ends where the user's next turn would begin
    defaults = extras.generation_config
    if defaults:
        writer.add_string(GENERATION_KEY, render_json(defaults))
    if defaults.get("do_sample"):
        adders = {
            "temperature": writer.add_sampling_temp,
            "top_k": writer.add_sampling_top_k,
            "top_p": writer.add_sampling_top_p,
            "repetition_penalty": writer.add_sampling_penalty_repeat,
        }
        for key, add in adders.items():
            value = defaults.get(key)
            whole = isinstance(value, int) or key != "top_k"
            if isinstance(value, int | float) and whole and -_LARGEST < value < _LARGEST:
                add(value)
    origin = extras.origin
    writer.add_name(origin.name if origin is not None else escape_unprintable(name))
    if origin is not None:
        writer.add_license(origin.licence_id or "other")
        writer.add_license_name(origin.licence)
        bases, revision = name_bases(origin)
        writer.add_base_model_count(len(bases))
        for index, base in enumerate(bases):
            owner, _, base_name = base.rpartition("/")
            writer.add_base_model_name(index, base_name)
            if owner:
                writer.add_base_model_organization(index, owner)
        if bases and revision:
            writer.add_base_model_version(0, revision)
