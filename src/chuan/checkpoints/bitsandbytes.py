"""What bitsandbytes leaves in a file: int8 with SCB, and 4-bit codes under today's keys or as the list of 2023.

In: `TensorFiles` and a weight's name. Out: a linear of the same bits; every length and shape is checked. The library
itself is not needed. Source: its `Linear8bitLt._save_to_state_dict`, `QuantState` and, for the list, release 0.41.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chuan.checkpoints.weights import TensorFiles
from chuan.errors import ChuanError
from chuan.quantization.codebook import NF4, CodebookLinear
from chuan.quantization.int8 import Int8Linear

_ROW = 0
_FORMATS = {"row": _ROW, "col32": 1, "col_turing": 2, "col_ampere": 3}
_STATE = "quant_state.bitsandbytes__"


def read_scb(files: TensorFiles, module: str) -> Int8Linear:
    """`W = int8 * SCB / 127`, one SCB (the row's largest absolute value) an output."""
    weight, scb = check_scb(files, module)
    return Int8Linear(weight, scb.view(-1, 1) / 127)


def dequantize_scb(files: TensorFiles, module: str) -> Tensor:
    """The float32 weight, rounded once: `int8 * SCB` is exact in float32 where SCB was computed in 16 bits."""
    weight, scb = check_scb(files, module)
    return weight.float() * scb.view(-1, 1) / 127


def check_scb(files: TensorFiles, module: str) -> tuple[Tensor, Tensor]:
    """The int8 weight (N, K) and its SCB (N,) in float32."""
    name = f"{module}.weight"
    weight, scb = files.read(name), files.read(f"{module}.SCB").float().flatten()
    if weight.dim() != 2 or scb.numel() != weight.shape[0]:
        raise ChuanError(
            f"{module}.SCB in {files.locate(name)} has {scb.numel()} scales for a weight of {list(weight.shape)}; "
            "there must be one a row: fetch the files again"
        )
    if not torch.isfinite(scb).all():
        raise ChuanError(f"{module}.SCB in {files.locate(name)} holds NaN or infinity; fetch the file again")
    format_name = f"{module}.weight_format"
    kind: Any = files.objects.get(format_name, "row")
    if format_name in files.shapes:
        stored = files.read(format_name).flatten()
        kind = int(stored[0]) if stored.numel() == 1 else stored.tolist()
    if kind != _ROW and kind != "row":
        known = {str(code): text for text, code in _FORMATS.items()}
        raise ChuanError(
            f"{name} in {files.locate(name)} lies in the tiles of a GPU kernel (weight_format "
            f"{known.get(str(kind), kind)!s:.40}), because it was saved after the model had run; today's bitsandbytes "
            "does not open these either: quantize the 16-bit weights again, or use them with --bits 8 (bits=8)"
        )
    return weight, scb


@dataclass(frozen=True)
class CodesState:
    """What describes 4-bit codes beside their tensors: `W = code[nibble] * absmax[block]`.

    Where `nested`, absmax is itself uint8: `nested_code[uint8] * nested_absmax[block of nested_block] + offset`.
    """

    kind: str
    shape: tuple[int, int]
    block: int
    nested_block: int | None = None
    offset: float | Tensor = 0.0

    def build(
        self, where: str, codes: Tensor, absmax: Tensor, code: Tensor, nested: Sequence[Tensor]
    ) -> CodebookLinear:
        """The linear, once every length is right. `nested` is (nested_absmax, nested_code), or nothing."""
        elements = math.prod(self.shape)
        blocks = -(-elements // self.block)
        sizes = {"codes": (codes.numel(), -(-elements // 2)), "absmax": (absmax.numel(), blocks)}
        sizes["quant_map"] = (code.numel(), 16)
        if self.nested_block is not None:
            sizes["nested absmax"] = (nested[0].numel(), -(-blocks // self.nested_block))
            sizes["nested quant_map"] = (nested[1].numel(), 256)
        for name, (found, expected) in sizes.items():
            if found != expected:
                raise ChuanError(f"{where} has {found} {name}, its quant_state says {expected}; fetch the files again")
        wanted = torch.float32 if self.nested_block is None else torch.uint8
        if codes.dtype != torch.uint8 or absmax.dtype != wanted:
            raise ChuanError(f"{where} is not packed as its quant_state says; fetch the files again")
        if self.nested_block is not None:
            scales = nested[0].float().repeat_interleave(self.nested_block)[:blocks]
            absmax = nested[1].float()[absmax.flatten().int()] * scales + self.offset
        if not (torch.isfinite(absmax).all() and torch.isfinite(code).all()):
            raise ChuanError(f"{where} has scales that are NaN or infinity; fetch the files again")
        return CodebookLinear(codes.flatten(), absmax.flatten(), code.float(), self.shape, self.block, self.kind)


def read_state(files: TensorFiles, name: str) -> CodesState:
    """The description that today's keys carry as JSON in a tensor of bytes."""
    key = next((other for other in files.shapes if other.startswith(f"{name}.{_STATE}")), None)
    try:
        if key is None:
            raise KeyError(_STATE)
        values = json.loads(bytes(files.read(key).flatten().tolist()).decode("utf-8"))
        nested = "nested_blocksize" in values
        return _check_state(
            kind=values["quant_type"],
            shape=values["shape"],
            block=values["blocksize"],
            nested_block=values["nested_blocksize"] if nested else None,
            offset=float(values["nested_offset"]) if nested else 0.0,
        )
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError):
        raise ChuanError(
            f"{name} in {files.locate(name)} is packed in 4 bits and its quant_state cannot be read; fetch it again"
        ) from None


def read_codes(files: TensorFiles, name: str, state: CodesState) -> CodebookLinear:
    """The linear, from today's keys."""
    where = f"{name} in {files.locate(name)}"
    tensors = [f"{name}.absmax", f"{name}.quant_map"]
    tensors += [f"{name}.nested_absmax", f"{name}.nested_quant_map"] if state.nested_block is not None else []
    missing = [other for other in tensors if other not in files.shapes]
    if missing:
        raise ChuanError(f"{where} lacks {missing[0]}; fetch the files again")
    absmax, code, *nested = (files.read(other) for other in tensors)
    return state.build(where, files.read(name), absmax, code, nested)


def read_listed_state(files: TensorFiles, name: str) -> tuple[CodesState, list[Tensor]]:
    """The list of 2023: [absmax, shape, dtype, 64, [offset, [absmax, code, 256, ...]], "nf4", code].

    Returns the state, and (absmax, code) or (absmax, code, nested absmax, nested code).
    """
    try:
        absmax, shape, _, block, compressed, kind, *rest = files.objects[f"{name}.quant_state"]
        code = rest[0] if rest else torch.tensor(NF4)
        nested_block, offset, nested = None, 0.0, []
        if compressed is not None:
            offset, (nested_absmax, nested_code, nested_block, *_) = compressed
            nested = [nested_absmax, nested_code]
        tensors = [absmax, code, *nested]
        if not all(isinstance(tensor, Tensor) for tensor in tensors) or (not rest and kind != "nf4"):
            raise TypeError
        if isinstance(offset, Tensor):
            offset = offset.float().reshape(())
        state = _check_state(kind=kind, shape=list(shape), block=block, nested_block=nested_block, offset=offset)
    except (KeyError, ValueError, TypeError, OverflowError, RuntimeError):
        raise ChuanError(
            f"{name}.quant_state in {files.locate(f'{name}.quant_state')} is not the list of seven parts that "
            "describes 4-bit weights (absmax, shape, dtype, block size, nesting, type, code); fetch the file again"
        ) from None
    return state, tensors


def read_listed_codes(files: TensorFiles, name: str) -> CodebookLinear:
    """The linear, from the list and `NAME.data`."""
    state, (absmax, code, *nested) = read_listed_state(files, name)
    data = f"{name}.data"
    if data not in files.shapes:
        raise ChuanError(f"{name}.quant_state has no {data} beside it; fetch the files again")
    return state.build(f"{name} in {files.locate(data)}", files.read(data), absmax, code, nested)


def name_codes(name: str, linear: CodebookLinear) -> dict[str, Tensor]:
    """The tensors of today's keys, not nested: what transformers opens with bitsandbytes."""
    shape = (linear.out_features, linear.in_features)
    values = {"quant_type": linear.kind, "blocksize": linear.block, "dtype": "bfloat16", "shape": shape}
    return {
        name: linear.weight.view(-1, 1),
        f"{name}.absmax": linear.absmax,
        f"{name}.quant_map": linear.code.clone(),  # safetensors wants no two names for the same memory
        f"{name}.{_STATE}{linear.kind}": torch.tensor(list(json.dumps(values).encode()), dtype=torch.uint8),
    }


def describe_codes(kind: str) -> dict[str, Any]:
    """The `quantization_config` that goes with them."""
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": False,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
    }


def _check_state(kind: Any, shape: Any, block: Any, nested_block: Any, offset: Any) -> CodesState:
    sizes = [*shape, block, *([] if nested_block is None else [nested_block])]
    if any(isinstance(size, bool) or not isinstance(size, int) or not 0 < size < 1 << 30 for size in sizes):
        raise ValueError
    if len(shape) != 2 or kind not in ("nf4", "fp4") or block % 2 or not math.isfinite(float(offset)):
        raise ValueError
    return CodesState(kind, (shape[0], shape[1]), block, nested_block, offset)
