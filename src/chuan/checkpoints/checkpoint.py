"""A checkpoint that has been opened and described, but not loaded; and loading its weights.

In: what `folder` or `gguf` found on disk. Out: a `Decoder`, filled one tensor at a time, quantized on the way where
that is asked for. Peak memory is the loaded model and one tensor. Knows no chat and no generation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chuan.checkpoints.layouts import IGNORED, Layout, list_weights
from chuan.checkpoints.weights import Weights
from chuan.errors import ChuanError
from chuan.model.config import ModelConfig
from chuan.model.decoder import Decoder
from chuan.quantization.int8 import Int8Linear, apply_int8, dequantize_rows, quantize_rows
from chuan.tokenizer.tokenizer import Tokenizer

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Checkpoint:
    """What a folder or file holds, read without its weights.

    `bits` is the precision of the stored linears, 16 (any float) or 8. `special` names the special tokens by role, and
    `role_ids` are the (user, assistant) ids of the Baichuan chat format, where the model has one.
    """

    path: Path
    kind: str
    config: ModelConfig
    layout: Layout
    open_weights: Callable[[], Weights]
    load_tokenizer: Callable[[], Tokenizer]
    bits: int = 16
    generation_config: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    special: Mapping[str, str] = field(default_factory=dict)
    role_ids: tuple[int, int] | None = None


def load_decoder(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    bits: int | None = None,
    progress: Progress | None = None,
) -> Decoder:
    """Reads the weights into a decoder in eval mode; `bits` 16 or 8, None for what the checkpoint has.

    Everything is checked before anything is read: names, shapes, shards. `progress` hears (tensors done, of how many).
    """
    bits = checkpoint.bits if bits is None else bits
    weights = checkpoint.open_weights()
    check_weights(checkpoint, weights)
    with torch.device("meta"):
        decoder = Decoder(checkpoint.config)
        if bits == 8:
            apply_int8(decoder)
    names = list(list_weights(checkpoint.config))
    for done, name in enumerate(names):
        module_name, _, attribute = name.rpartition(".")
        module = decoder.get_submodule(module_name)
        if isinstance(module, Int8Linear) and attribute == "weight":
            module.weight, module.weight_scale = (
                tensor.to(device) for tensor in _read_int8(checkpoint, weights, name, device)
            )
        else:
            tensor = _read_float(checkpoint, weights, name).to(device=device, dtype=dtype, copy=True)
            setattr(module, attribute, nn.Parameter(tensor.contiguous(), requires_grad=False))
        if progress is not None:
            progress(done + 1, len(names))
    decoder.tie_head()
    return decoder.eval()


def check_weights(checkpoint: Checkpoint, weights: Weights) -> None:
    """Every weight is there in its shape, and none is there that the configuration does not account for."""
    used: set[str] = set()
    for name, shape in list_weights(checkpoint.config).items():
        part = checkpoint.layout[name]
        expected = shape if part.source_rows is None else (part.source_rows, *shape[1:])
        found = weights.shapes.get(part.source)
        if found is None:
            raise ChuanError(
                f"{checkpoint.path} lacks the weight {part.source}; the files are incomplete or config.json describes "
                "another model"
            )
        if tuple(found) != expected:
            raise ChuanError(
                f"{part.source} in {weights.locate(part.source)} has the shape {list(found)}, but the configuration "
                f"says {list(expected)}; the weights and config.json do not belong together"
            )
        used.add(part.source)
        if checkpoint.bits == 8 and _is_linear(name):
            used.add(f"{part.source}_scale")
    unused = sorted(name for name in weights.shapes.keys() - used if not IGNORED.fullmatch(name))
    if checkpoint.config.tie_word_embeddings:
        unused = [name for name in unused if name not in ("lm_head.weight", "output.weight")]
    if unused:
        raise ChuanError(
            f"{checkpoint.path} has the weight {unused[0]} (and {len(unused) - 1} more) that its configuration does "
            "not account for; it is not a model of this family"
        )


def _is_linear(name: str) -> bool:
    return name.startswith("model.layers.") and name.endswith("proj.weight")


def _read_float(checkpoint: Checkpoint, weights: Weights, name: str) -> Tensor:
    part = checkpoint.layout[name]
    tensor = weights.read(part.source)
    if checkpoint.bits == 8 and _is_linear(name):
        return dequantize_rows(*_read_int8_parts(checkpoint, weights, name))
    if not tensor.is_floating_point():
        raise ChuanError(
            f"{part.source} in {weights.locate(part.source)} is {str(tensor.dtype).removeprefix('torch.')} without "
            "scales; it was saved incompletely: use the model's 16-bit weights"
        )
    taken = part.take(tensor)
    # One pass that any NaN or infinity survives: a flipped bit should not surface as a strange answer.
    if not torch.isfinite(taken.sum(dtype=torch.float32)):
        raise ChuanError(f"{part.source} in {weights.locate(part.source)} holds NaN or infinity; fetch the file again")
    return taken


def _read_int8(checkpoint: Checkpoint, weights: Weights, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    if checkpoint.bits == 8:
        weight, scale = _read_int8_parts(checkpoint, weights, name)
        return weight.clone(), scale.float().reshape(-1, 1).clone()
    weight = _read_float(checkpoint, weights, name)
    return quantize_rows(weight.to(device).float())


def _read_int8_parts(checkpoint: Checkpoint, weights: Weights, name: str) -> tuple[Tensor, Tensor]:
    part = checkpoint.layout[name]
    weight = weights.read(part.source)
    scale_name = f"{part.source}_scale"
    if weight.dtype != torch.int8 or tuple(weights.shapes.get(scale_name, ())) != (weight.shape[0], 1):
        raise ChuanError(
            f"{part.source} in {weights.locate(part.source)} is not int8 with one scale a row, as config.json says; "
            "fetch the files again"
        )
    scale = weights.read(scale_name)
    rows = part.rows or slice(None)
    if not torch.isfinite(scale.float()).all():
        raise ChuanError(f"{scale_name} holds NaN or infinity; fetch the file again")
    return weight[rows], scale[rows]
