"""Baichuan folders in the few-bit layouts that are in circulation, built bit by bit, with the floats that they mean."""

import json
from pathlib import Path
from typing import Any, Literal

import bitsandbytes.functional as bnb
import torch
from safetensors.torch import save_file
from torch import Tensor

from chuan.quantization.codebook import NF4
from tests.support.folders import write_baichuan_folder

Generation = Literal[1, 2]


def write_scb_folder(
    path: Path,
    generation: Generation = 2,
    weight_format: Literal["string", "tensor", "none"] = "string",
    **options: Any,
) -> dict[str, Tensor]:
    """bitsandbytes' int8, as `load_in_8bit=True` and `save_pretrained` wrote it; returns the dequantized state."""
    state = write_baichuan_folder(path, generation, dtype=torch.float16, **options)
    stored, meant = {}, {}
    for name, tensor in state.items():
        stored[name] = meant[name] = tensor
        if is_linear(name):
            module = name.removesuffix(".weight")
            largest = tensor.abs().amax(dim=1).float()
            stored[name] = (tensor.float() * 127 / largest[:, None]).round().to(torch.int8)
            stored[f"{module}.SCB"] = largest
            if weight_format == "string":
                stored[f"{module}.weight_format"] = "row"
            elif weight_format == "tensor":
                stored[f"{module}.weight_format"] = torch.tensor(0, dtype=torch.uint8)
            meant[name] = stored[name].float() * largest[:, None] / 127
    _replace_weights(path, stored, "bin" if weight_format == "string" else "safetensors")
    set_config(
        path, quantization_config={"load_in_8bit": True, "llm_int8_threshold": 6.0, "quant_method": "bitsandbytes"}
    )
    return meant


def write_listed_folder(path: Path, generation: Generation = 2, **options: Any) -> dict[str, Tensor]:
    """The official 4-bit folder: `weight.data` and the pickled list `weight.quant_state` (bitsandbytes 0.41)."""
    state = write_baichuan_folder(path, generation, dtype=torch.float16, **options)
    stored: dict[str, Any] = {}
    meant = {}
    for name, tensor in state.items():
        stored[name] = meant[name] = tensor
        if is_linear(name):
            stored.pop(name)
            packed, quant_state, meant[name] = quantize_as_listed(tensor)
            stored[f"{name}.data"], stored[f"{name}.quant_state"] = packed, quant_state
    _replace_weights(path, stored, "bin")
    set_config(path, quantization_config={"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"})
    return meant


def quantize_as_listed(weight: Tensor, block: int = 64, nested_block: int = 256) -> tuple[Tensor, list[Any], Tensor]:
    """By hand: NF4 in blocks of 64, whose absmax less its mean is itself quantized in blocks of 256."""
    code = torch.tensor(NF4)
    blocks = weight.float().flatten().view(-1, block)
    absmax = blocks.abs().amax(dim=1)
    nibbles = ((blocks / absmax[:, None]).unsqueeze(-1) - code).abs().argmin(dim=-1).flatten()
    packed = ((nibbles[0::2] << 4) | nibbles[1::2]).to(torch.uint8)
    offset = absmax.mean()
    code256 = bnb.create_dynamic_map().float()
    centred = torch.nn.functional.pad(absmax - offset, (0, -len(absmax) % nested_block)).view(-1, nested_block)
    absmax2 = centred.abs().amax(dim=1)
    index = ((centred / absmax2[:, None]).unsqueeze(-1) - code256).abs().argmin(dim=-1).to(torch.uint8)
    small = index.flatten()[: len(absmax)].clone()
    again = code256[small.int()] * absmax2.repeat_interleave(nested_block)[: len(absmax)] + offset
    meant = (code[nibbles].view(-1, block) * again[:, None]).view(weight.shape)
    state2 = [absmax2, code256, nested_block, False, torch.float32, None, None]
    state = [small, weight.shape, weight.dtype, block, [offset, state2], "nf4", code]
    return packed.view(-1, 1), state, meant


def write_codes_folder(
    path: Path, generation: Generation = 2, kind: Literal["nf4", "fp4"] = "nf4", nested: bool = True, **options: Any
) -> dict[str, Tensor]:
    """Today's keys, by bitsandbytes itself; returns the dequantized state, in bitsandbytes' own arithmetic."""
    state = write_baichuan_folder(path, generation, dtype=torch.float16, **options)
    stored, meant = {}, {}
    for name, tensor in state.items():
        stored[name] = meant[name] = tensor
        if is_linear(name):
            packed, quant_state = bnb.quantize_4bit(tensor, blocksize=64, compress_statistics=nested, quant_type=kind)  # type: ignore[misc]
            stored[name] = packed
            stored |= {f"{name}.{key}": value for key, value in quant_state.as_dict(packed=True).items()}
            quant_state.dtype = torch.float32
            quant_state.shape = torch.Size((tensor.numel() // 64, 64))  # its CPU kernel wants rows of whole blocks
            meant[name] = bnb.dequantize_4bit(packed, quant_state).view(tensor.shape)
    _replace_weights(path, stored, "safetensors")
    set_config(
        path, quantization_config={"load_in_4bit": True, "bnb_4bit_quant_type": kind, "quant_method": "bitsandbytes"}
    )
    return meant


def is_linear(name: str) -> bool:
    return name.endswith(("proj.weight", "W_pack.weight"))


def set_config(path: Path, **values: Any) -> None:
    """Changes keys of `config.json`."""
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | values))


def edit_bin(path: Path, **values: Any) -> None:
    """Changes entries of `pytorch_model.bin`; None removes one."""
    stored = torch.load(path / "pytorch_model.bin", weights_only=True)
    for name, value in values.items():
        if value is None:
            del stored[name]
        else:
            stored[name] = value
    torch.save(stored, path / "pytorch_model.bin")


def _replace_weights(path: Path, stored: dict[str, Any], kind: Literal["bin", "safetensors"]) -> None:
    for file in [*path.glob("*.safetensors"), *path.glob("*.bin"), *path.glob("*.index.json")]:
        file.unlink()
    if kind == "bin":
        torch.save(stored, path / "pytorch_model.bin")
    else:
        save_file({name: tensor.contiguous() for name, tensor in stored.items()}, path / "model.safetensors")
