"""GGUF files of the Llama family.

In: one file. Out: a `Checkpoint`. The gguf library parses and dequantizes; what is ours is distrust of the header.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from torch import Tensor

from chuan.checkpoints.checkpoint import Checkpoint
from chuan.checkpoints.folder import BAICHUAN2_VOCABULARY, SPECIAL_IDS, read_role_ids
from chuan.checkpoints.front_matter import LONGEST, clean, is_hub_id
from chuan.checkpoints.gguf_vocabulary import load_tokenizer
from chuan.checkpoints.layouts import build_gguf_layout
from chuan.errors import ChuanError, first_line
from chuan.model.config import ModelConfig
from chuan.model.rope import build_frequencies

# What the library may raise on a file whose header lies; each becomes one line.
_BROKEN = (
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    AttributeError,
    MemoryError,
    OSError,
    RuntimeError,
)

# Where we put a model's whole `generation_config.json`: role ids, sampling, stops.
GENERATION_KEY = "chuan.generation_config"
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16}
_MOST_BASES = 16


def open_gguf(path: Path) -> Checkpoint:
    """Reads the header: shape, tokenizer, template."""
    with np.errstate(all="ignore"):  # sizes that overflow are caught below, as sizes
        file = GGUFFile(path)
        config = _read_config(file)
    special_ids = {role: file.get(f"tokenizer.ggml.{role}_token_id") for role in ("bos", "eos", "unknown", "padding")}
    pieces = file.get("tokenizer.ggml.tokens")
    if not isinstance(pieces, list) or not pieces or not all(isinstance(piece, str) for piece in pieces):
        raise ChuanError(f"{path} carries no tokenizer; use a GGUF made with its vocabulary")
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    special = {
        names[role]: pieces[index]
        for role, index in special_ids.items()
        if isinstance(index, int) and 0 <= index < len(pieces)
    }
    ids = dict(zip(SPECIAL_IDS, (special_ids[role] for role in ("bos", "eos", "padding")), strict=True))
    template = file.get("tokenizer.chat_template")
    named = {key: index for key, index in ids.items() if isinstance(index, int)}
    generation_config = _read_generation_config(file) or named
    role_ids = read_role_ids(generation_config, config.vocab_size)
    # llama.cpp's own converter leaves the head of the second generation as it is, to be normalized.
    baichuan = file.get("general.architecture") == "baichuan"
    normalized = baichuan and config.vocab_size == BAICHUAN2_VOCABULARY
    return Checkpoint(
        path=path,
        kind=f"{'Baichuan ' if baichuan else ''}GGUF, {file.type_name}",
        config=config,
        layout=build_gguf_layout(config, normalized),
        open_weights=lambda: file,
        load_tokenizer=functools.partial(load_tokenizer, file, special, role_ids),
        generation_config=generation_config,
        chat_template=template if isinstance(template, str) else None,
        special=special,
        role_ids=role_ids,
        read_card=functools.partial(_read_card, file),
    )


class _BoundedReader(gguf.GGUFReader):
    """The library's reader, with another way to take a slice of the file.

    Bounded: it takes a lying count at its word, and beyond the end would read nothing, for ever. And out of plain
    memory: slices of a mapped array cost four times as much, and a vocabulary is half a million of them.
    """

    @functools.cached_property
    def _memory(self) -> np.ndarray:
        return self.data.view(np.ndarray)

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        kind = np.dtype(dtype).newbyteorder(self.byte_order if override_order is None else override_order)
        start = int(offset)
        end = start + int(count) * kind.itemsize
        if end > len(self._memory):
            raise ValueError("it ends before what its header promises")
        return self._memory[start:end].view(kind)


class GGUFFile:
    """The header's values, and `Weights` that are dequantized when read."""

    bits = 16

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._reader = _BoundedReader(path)
            _check_offsets(self._reader)
            self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
            # GGUF counts from the fastest axis; torch from the slowest.
            self.shapes = {
                name: tuple(int(size) for size in reversed(tensor.shape)) for name, tensor in self._tensors.items()
            }
        except (FileNotFoundError, NotADirectoryError):
            raise ChuanError(f"{path} is missing; check the path") from None
        except PermissionError:
            raise ChuanError(f"{path} cannot be read: you have no permission; ask whoever owns it") from None
        except _BROKEN as error:
            raise self._broken(error) from None

    def get(self, key: str) -> Any:
        """A value of the header, or None."""
        field = self._reader.fields.get(key)
        if field is None:
            return None
        try:
            return field.contents()
        except _BROKEN as error:
            raise self._broken(error) from None

    def read(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        try:
            with np.errstate(all="ignore"):  # a NaN among the scales is reported by whoever reads the tensor
                values = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            raise ChuanError(
                f"{name} in {self.path} is of type {tensor.tensor_type.name}, which gguf cannot dequantize; "
                "use another quantization of the model"
            ) from None
        except _BROKEN as error:
            raise self._broken(error) from None
        return torch.from_numpy(np.array(values)).reshape(self.shapes[name])

    def read_float(self, name: str) -> Tensor:
        return self.read(name)

    @property
    def type_name(self) -> str:
        """That of most of the linears, as llama.cpp calls it: BF16, Q4_0 ..."""
        linears = [name for name, shape in self.shapes.items() if name.startswith("blk.") and len(shape) == 2]
        types = Counter(self._tensors[name].tensor_type.name for name in linears)
        return str(types.most_common(1)[0][0]) if types else "no linears"

    @property
    def dtype(self) -> torch.dtype:
        """That of the linears; what is quantized means float16, whose precision its blocks' scales have."""
        return _DTYPES.get(self.type_name, torch.float16)

    def locate(self, name: str) -> str:
        return str(self.path)

    def _broken(self, error: BaseException) -> ChuanError:
        return ChuanError(f"{self.path} is not a sound GGUF file ({first_line(error):.120}); fetch it again")


def _check_offsets(reader: gguf.GGUFReader) -> None:
    """Tensors lie one behind the other, each aligned, as llama.cpp demands too; at another offset lies other data."""
    expected = reader.data_offset
    for tensor in reader.tensors:
        if tensor.data_offset != expected:
            raise ValueError(f"{tensor.name} does not lie behind the tensor before it")
        expected += -(-tensor.n_bytes // reader.alignment) * reader.alignment


def _read_config(file: GGUFFile) -> ModelConfig:
    architecture = file.get("general.architecture")
    if architecture not in ("llama", "baichuan"):
        raise ChuanError(
            f"{file.path} holds the architecture {architecture!r:.60}; Chuan opens GGUF of the llama family"
        )
    if architecture == "baichuan" and file.get("baichuan.block_count") == 40:
        raise ChuanError(
            f"{file.path} is a Baichuan model with ALiBi positions (13B), which is not supported yet; use a 7B"
        )
    if file.get("llama.expert_count"):
        raise ChuanError(f"{file.path} holds a mixture of experts; Chuan opens dense models of the llama family")

    parts = file.get("split.count")
    if isinstance(parts, int) and parts > 1:
        raise ChuanError(
            f"{file.path} is one of {parts} parts of a model; join them with llama.cpp's llama-gguf-split --merge"
        )

    def value(key: str) -> Any:
        return file.get(f"{architecture}.{key}")

    embeddings = file.shapes.get("token_embd.weight")
    heads, width = value("attention.head_count"), value("embedding_length")
    values = {
        "vocab_size": embeddings[0] if embeddings else value("vocab_size"),
        "hidden_size": width,
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("attention.head_count_kv"),
        "head_dim": value("attention.key_length"),
        "max_position_embeddings": value("context_length"),
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "rope_theta": value("rope.freq_base"),
        "tie_word_embeddings": "output.weight" not in file.shapes,
        "rope_scaling": _read_rope_scaling(value),
        "attention_bias": "blk.0.attn_q.bias" in file.shapes,
        "mlp_bias": "blk.0.ffn_up.bias" in file.shapes,
    }
    config = ModelConfig.from_dict(values)
    rotated = value("rope.dimension_count")
    if rotated is not None and rotated != config.head_dim:
        raise ChuanError(f"{file.path} rotates only {rotated} of {config.head_dim} dimensions, which is not supported")
    return _recognise_llama3(file, config)


def _read_card(file: GGUFFile) -> dict[str, str | list[str]]:
    """Licence and origin, under the names of a model card."""
    keys = {"license": "license", "license_name": "license.name", "base_model_revision": "base_model.0.version"}
    found: dict[str, str | list[str]] = {}
    for name, key in keys.items():
        value = file.get(f"general.{key}")
        if isinstance(value, str) and 0 < len(value) <= LONGEST:
            found[name] = clean(value)
    bases = [base for index in range(_MOST_BASES) if (base := _read_base(file, index)) is not None]
    return found | ({"base_model": bases} if bases else {})


def _read_base(file: GGUFFile, index: int) -> str | None:
    """A hub id: of the repository's address, or owner and name."""
    keys = ("repo_url", "organization", "name")
    values = [file.get(f"general.base_model.{index}.{key}") for key in keys]
    url, owner, name = (value if isinstance(value, str) else "" for value in values)
    found = re.fullmatch(r"https://[^/]+/(?:models/)?([\w.-]+/[\w.-]+)/?", url)
    base = found[1] if found else f"{owner}/{name}"
    return base if is_hub_id(base) else None


def _read_generation_config(file: GGUFFile) -> dict[str, Any]:
    """The one that we wrote, or nothing."""
    text = file.get(GENERATION_KEY)
    if text is None:
        return {}
    try:
        values = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ChuanError(f"{file.path} carries generation defaults that are no JSON object; fetch it again")
    return values


def _read_rope_scaling(value: Any) -> dict[str, Any] | None:
    kind = value("rope.scaling.type")
    factor = value("rope.scaling.factor") or value("rope.scale_linear")
    if kind in (None, "none") and not factor:
        return None
    table = {"rope_type": kind or "linear", "factor": factor}
    if kind == "yarn":
        table["original_max_position_embeddings"] = value("rope.scaling.original_context_length")
    return table


def _recognise_llama3(file: GGUFFile, config: ModelConfig) -> ModelConfig:
    if "rope_freqs.weight" not in file.shapes:
        return config
    found = recognise_llama3(config, file.read("rope_freqs.weight").float())
    if found is None:
        raise ChuanError(f"{file.path} carries RoPE factors that are not Llama 3's, which is not supported")
    return found


def recognise_llama3(config: ModelConfig, factors: Tensor) -> ModelConfig | None:
    """The model with the scaling that one factor a frequency (D/2,) stands for, if it is Llama 3's.

    Only the factors are stored; of what they are made from, all but `factor`, the largest, is what Llama 3 has.
    """
    factor = float(f"{float(factors.max()):.5g}")
    if not factor >= 1:  # NaN is not
        return None
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    candidate = ModelConfig.from_dict(config.to_dict() | {"rope_scaling": scaling})
    expected = build_frequencies(config)[0] / build_frequencies(candidate)[0]
    same = expected.shape == factors.shape and torch.allclose(expected, factors, rtol=1e-4)
    return candidate if same else None
