"""Weights as files hold them: plain tensors, or several tensors that together are one weight of 8 or 4 bits.

In: `TensorFiles`. Out: `Weights`, one value a name: a float tensor, or a `QuantizedLinear` of the same few bits. Never
through floats. The kinds, told by the names that are there (a `config.json` is often another folder's):

| kind | names beside X.weight |
|---|---|
| int8, compressed-tensors | `X.weight_scale` |
| int8, bitsandbytes | `X.SCB`, `X.weight_format` |
| int4 groups, compressed-tensors | `X.weight_packed`, `X.weight_scale`, `X.weight_shape` instead of it |
| NF4 or FP4, bitsandbytes | `X.weight.absmax`, `.quant_map`, `.quant_state.bitsandbytes__nf4` ... |
| NF4, published in 2023 | `X.weight.data` and a list `X.weight.quant_state` instead of it |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from chuan.checkpoints.bitsandbytes import (
    dequantize_scb,
    name_codes,
    read_codes,
    read_listed_codes,
    read_listed_state,
    read_scb,
    read_state,
)
from chuan.checkpoints.weights import TensorFiles
from chuan.errors import ChuanError
from chuan.quantization.codebook import CodebookLinear
from chuan.quantization.int4 import Int4Linear
from chuan.quantization.int8 import Int8Linear
from chuan.quantization.linear import QuantizedLinear
from chuan.quantization.methods import Stored, dequantize

_Reader = Callable[[], QuantizedLinear]
_LINEARS = ("proj.weight", "W_pack.weight")


class Weights(Protocol):
    """Named weights, readable one at a time. `bits` is the fewest that a weight has; `dtype` is that of the floats."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every weight's shape in floats, by name."""
        ...

    @property
    def bits(self) -> int: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def read(self, name: str) -> Stored:
        """The weight as it is stored; a tensor may be a view of the mapped file: copy before the file may change."""
        ...

    def read_float(self, name: str) -> Tensor:
        """The weight in floats: as it is stored, or widened to float32."""
        ...

    def locate(self, name: str) -> str:
        """The file that holds it, for messages."""
        ...


class StoredWeights:
    """`Weights` of safetensors and `.bin` files."""

    def __init__(self, files: TensorFiles) -> None:
        self._files = files
        self.shapes = dict(files.shapes)
        self._readers: dict[str, _Reader] = {}
        self._main: dict[str, str] = {}  # a quantized weight's name -> a name that the files have, to locate it
        self.bits = 16
        for name in [*files.shapes, *files.objects]:
            if name.endswith(".SCB"):
                self._add_scb(name.removesuffix(".SCB"))
            elif name.endswith(".weight.absmax"):
                self._add_codes(name.removesuffix(".absmax"))
            elif name.endswith(".weight.quant_state"):
                self._add_listed_codes(name.removesuffix(".quant_state"))
            elif name.endswith(".weight_packed"):
                self._add_groups(name.removesuffix("_packed"))
            elif name.endswith(".weight_scale") and files.dtypes.get(name.removesuffix("_scale")) == torch.int8:
                self._add_int8(name.removesuffix("_scale"))
        self._check_plain()
        self.dtype = self._find_dtype()

    def read(self, name: str) -> Stored:
        reader = self._readers.get(name)
        return self._files.read(name) if reader is None else reader()

    def read_float(self, name: str) -> Tensor:
        if f"{name.removesuffix('.weight')}.SCB" in self._files.shapes:
            return dequantize_scb(self._files, name.removesuffix(".weight"))
        return dequantize(self.read(name))

    def locate(self, name: str) -> str:
        return self._files.locate(self._main.get(name, name))

    def _add(self, name: str, bits: int, shape: tuple[int, ...], main: str, beside: list[str], reader: _Reader) -> None:
        for other in (main, *beside):
            self.shapes.pop(other, None)
        self.shapes[name] = shape
        self._readers[name], self._main[name] = reader, main
        self.bits = min(self.bits, bits)

    def _add_scb(self, module: str) -> None:
        name = f"{module}.weight"
        if self._files.dtypes.get(name) != torch.int8:
            raise ChuanError(
                f"{self._files.locate(f'{module}.SCB')} has the scales {module}.SCB but no int8 weights that belong to "
                "them; fetch the files again"
            )
        beside = [f"{module}.SCB", f"{module}.weight_format"]
        self._add(name, 8, self._files.shapes[name], name, beside, lambda: read_scb(self._files, module))

    def _add_int8(self, name: str) -> None:
        def read() -> QuantizedLinear:
            scale = self._files.read(f"{name}_scale")
            _check_finite(f"{name}_scale", scale, self._files)
            return Int8Linear(self._files.read(name), scale.float())

        shape = self._files.shapes[name]
        if self._files.shapes[f"{name}_scale"] != (shape[0], 1):
            raise ChuanError(
                f"{name} in {self._files.locate(name)} is not int8 with one scale a row, as its config.json says; "
                "fetch the files again"
            )
        self._add(name, 8, shape, name, [f"{name}_scale"], read)

    def _add_groups(self, name: str) -> None:
        packed, scale_name, shape_name = f"{name}_packed", f"{name}_scale", f"{name}_shape"
        rows, words = (*self._files.shapes[packed], 0, 0)[:2]
        scales = self._files.shapes.get(scale_name, ())
        integers = self._files.dtypes.get(shape_name) in (torch.int64, torch.int32)
        sizes = self._files.read(shape_name).tolist() if self._files.shapes.get(shape_name) == (2,) else []
        sound = (
            self._files.dtypes[packed] == torch.int32
            and len(self._files.shapes[packed]) == 2
            and integers
            and len(sizes) == 2
            and sizes[0] == rows
            and -(-sizes[1] // 8) == words
            and len(scales) == 2
            and scales[0] == rows
            and scales[1] > 0
            and sizes[1] % scales[1] == 0
        )
        if not sound:
            raise ChuanError(
                f"{packed} in {self._files.locate(packed)} does not fit its weight_shape and weight_scale; "
                "fetch the files again"
            )

        def read() -> QuantizedLinear:
            scale = self._files.read(scale_name)
            _check_finite(scale_name, scale, self._files)
            return Int4Linear(self._files.read(packed), scale, sizes[1])

        self._add(name, 4, tuple(sizes), packed, [scale_name, shape_name], read)

    def _add_codes(self, name: str) -> None:
        beside = [other for other in self._files.shapes if other.startswith(f"{name}.")]
        state = read_state(self._files, name)
        self._add(name, 4, state.shape, name, beside, lambda: read_codes(self._files, name, state))

    def _add_listed_codes(self, name: str) -> None:
        state, _ = read_listed_state(self._files, name)
        self._add(name, 4, state.shape, f"{name}.data", [], lambda: read_listed_codes(self._files, name))

    def _check_plain(self) -> None:
        """What is left must be floats, of one type for the linears of all shards."""
        first: tuple[str, torch.dtype] | None = None
        for name in self.shapes.keys() - self._readers.keys():
            dtype = self._files.dtypes[name]
            if dtype == torch.int8:
                raise ChuanError(
                    f"{name} in {self._files.locate(name)} is int8 without its scales (SCB), as save_pretrained wrote "
                    "it after model.quantize(8) in the published code; they cannot be computed again: use the model's "
                    "16-bit weights with --bits 8 (bits=8)"
                )
            if dtype in (torch.uint8, torch.int32) and name.endswith(("weight", "weight.data")):
                raise ChuanError(
                    f"{name} in {self._files.locate(name)} is packed, and what describes it is missing; fetch the "
                    "files again, or use the model's 16-bit weights"
                )
            if name.endswith(_LINEARS) and dtype is not None:
                first = first or (name, dtype)
                if dtype != first[1] and self._files.locate(name) != self._files.locate(first[0]):
                    raise ChuanError(
                        f"{self._files.locate(first[0])} holds {str(first[1])[6:]} and {self._files.locate(name)} "
                        f"{str(dtype)[6:]}: shards of two models; fetch one whole set"
                    )

    def _find_dtype(self) -> torch.dtype:
        """That of most of the linears; where all of them have few bits, of the embedding and the head."""
        matrices = [name for name in self.shapes if name not in self._readers and len(self.shapes[name]) == 2]
        linears = [name for name in matrices if name.endswith(_LINEARS)]
        types = [self._files.dtypes[name] for name in linears or matrices]
        found = [dtype for dtype in types if dtype is not None and dtype.is_floating_point]
        return Counter(found).most_common(1)[0][0] if found else torch.float16


def name_tensors(name: str, stored: Stored) -> dict[str, Tensor]:
    """The tensors, by name, that a file holds for a weight; the inverse of reading."""
    if isinstance(stored, Int8Linear):
        return {name: stored.weight, f"{name}_scale": stored.weight_scale}
    if isinstance(stored, Int4Linear):
        shape = torch.tensor([stored.out_features, stored.in_features])
        return {f"{name}_packed": stored.weight_packed, f"{name}_scale": stored.weight_scale, f"{name}_shape": shape}
    if isinstance(stored, CodebookLinear):
        return name_codes(name, stored)
    assert isinstance(stored, Tensor)
    return {name: stored}


def _check_finite(name: str, tensor: Tensor, files: TensorFiles) -> None:
    if not torch.isfinite(tensor.float()).all():
        raise ChuanError(f"{name} in {files.locate(name)} holds NaN or infinity; fetch the file again")
