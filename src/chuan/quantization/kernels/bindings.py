"""The compiled kernels, by ctypes: structures, packing, one linear, one decoder layer.

In: torch tensors on the CPU. Out: torch tensors. `kernels.h` says what everything means; this file mirrors it.
`CHUAN_KERNELS` names the instruction set to use (amx, avx512_vnni, avx2, portable), or `torch` for none of these.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from ctypes import POINTER, c_char_p, c_float, c_int32, c_size_t, c_void_p

import torch
from torch import Tensor

from chuan.errors import ChuanError

GROUP = 64
INPUTS = 512
PANEL = 16
SETTING = "CHUAN_KERNELS"


class LinearStruct(ctypes.Structure):
    """`Linear` of kernels.h."""

    _fields_ = (
        ("panels", c_void_p),
        ("rows", c_void_p),
        ("scale", c_void_p),
        ("group_scale", c_void_p),
        ("bias", c_void_p),
        ("outputs", c_int32),
        ("width", c_int32),
        ("inputs", c_int32),
        ("bits", c_int32),
        ("group", c_int32),
    )


class LayerStruct(ctypes.Structure):
    """`Layer` of kernels.h."""

    _fields_ = (
        *((name, LinearStruct) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        ("input_norm", c_void_p),
        ("post_norm", c_void_p),
    )


class ShapeStruct(ctypes.Structure):
    """`Shape` of kernels.h."""

    _fields_ = (*((name, c_int32) for name in ("hidden", "ffn", "heads", "kv_heads", "head_dim")), ("eps", c_float))


class SequenceStruct(ctypes.Structure):
    """`Sequence` of kernels.h."""

    _fields_ = (*((name, c_int32) for name in ("first", "rows", "past", "unused")), ("pages", c_void_p))


class BatchStruct(ctypes.Structure):
    """`Batch` of kernels.h."""

    _fields_ = (
        ("rows", c_int32),
        ("sequences", c_int32),
        ("sequence", POINTER(SequenceStruct)),
        *((name, c_void_p) for name in ("cos", "sin", "keys", "values")),
    )


class KernelsStruct(ctypes.Structure):
    """`Kernels` of kernels.h."""

    _fields_ = (
        ("name", c_char_p),
        ("unit", c_int32),
        ("offset", c_int32),
        ("linear_space", ctypes.CFUNCTYPE(c_size_t, c_int32, c_int32)),
        (
            "linear",
            ctypes.CFUNCTYPE(None, POINTER(LinearStruct), c_int32, c_void_p, c_void_p, c_float, c_void_p, c_void_p),
        ),
        ("layer_space", ctypes.CFUNCTYPE(c_size_t, POINTER(ShapeStruct), c_int32)),
        (
            "layer",
            ctypes.CFUNCTYPE(
                None, POINTER(ShapeStruct), POINTER(LayerStruct), POINTER(BatchStruct), c_void_p, c_void_p
            ),
        ),
    )


class NativeKernels:
    """The kernels of one instruction set; `struct` has their functions."""

    def __init__(self, library: ctypes.CDLL, address: int) -> None:
        self._library = library
        self._address = c_void_p(address)
        self.struct = KernelsStruct.from_address(address)
        self.name = self.struct.name.decode()

    def pack8(self, weight: Tensor) -> Tensor:
        """(N, K) int8 -> panels (N / 16, K / 64, 1024) uint8, both padded."""
        rows, width = weight.shape
        inputs = -(-width // GROUP) * GROUP
        panels = torch.empty(-(-rows // PANEL), inputs // GROUP, PANEL * GROUP, dtype=torch.uint8)
        weight = weight.contiguous()
        self._library.chuan_pack8(self._address, _address(weight), rows, width, inputs, _address(panels))
        return panels

    def unpack8(self, panels: Tensor, first: int, rows: int, width: int) -> Tensor:
        """Some rows of the weight that was packed, (rows, K) int8."""
        weight = torch.empty(rows, width, dtype=torch.int8)
        inputs = panels.shape[1] * GROUP
        self._library.chuan_unpack8(self._address, _address(panels), first, rows, width, inputs, _address(weight))
        return weight

    def pack4(self, packed: Tensor, width: int) -> Tensor:
        """(N, K / 8) int32 of nibbles -> panels (N / 16, K * 8) uint8; K a multiple of 32."""
        rows = packed.shape[0]
        panels = torch.empty(-(-rows // PANEL), width * PANEL // 2, dtype=torch.uint8)
        packed = packed.contiguous()
        self._library.chuan_pack4(self._address, _address(packed), rows, width, _address(panels))
        return panels

    def unpack4(self, panels: Tensor, first: int, rows: int, width: int) -> Tensor:
        """Some rows of the nibbles that were packed, (rows, K / 8) int32."""
        packed = torch.empty(rows, width // 8, dtype=torch.int32)
        self._library.chuan_unpack4(self._address, _address(panels), first, rows, width, _address(packed))
        return packed

    def linear(self, linear: LinearStruct, x: Tensor, norm: Tensor | None = None, eps: float = 0.0) -> Tensor:
        """(T, K) float32, contiguous -> (T, N) float32; with `norm` (K,) float32 the rows are RMS-normalized first."""
        y = torch.empty(x.shape[0], linear.outputs)
        space = torch.empty(self.struct.linear_space(x.shape[0], linear.inputs), dtype=torch.uint8)
        weight = None if norm is None else _address(norm)
        self.struct.linear(linear, x.shape[0], _address(x), weight, eps, _address(y), _address(space))
        return y


def load_kernels() -> NativeKernels | None:
    """The fastest kernels that this processor runs, or those that `CHUAN_KERNELS` names.

    None where none were compiled, or `torch` is asked for.
    """
    return open_kernels(os.environ.get(SETTING) or None)


@functools.cache
def open_kernels(wanted: str | None) -> NativeKernels | None:
    """As `load_kernels`, by name. Raises ChuanError where the processor or the installation lacks them."""
    spec = importlib.util.find_spec("chuan.quantization.kernels._kernels")
    if wanted == "torch" or (wanted is None and (spec is None or spec.origin is None)):
        return None
    if spec is None or spec.origin is None:
        raise ChuanError(f"{SETTING}={wanted!r:.40}, but no kernels were compiled; install with a C compiler at hand")
    # torch was imported above: its OpenMP library is the one that these find, and so they share its threads.
    library = ctypes.CDLL(spec.origin)
    check_structures(library)
    library.chuan_choose.restype = c_void_p
    library.chuan_choose.argtypes = (c_char_p,)
    for name in ("pack8", "unpack8", "pack4", "unpack4"):
        getattr(library, f"chuan_{name}").restype = None
    address = library.chuan_choose(None if wanted is None else wanted.encode())
    if not address:
        raise ChuanError(
            f"{SETTING}={wanted!r:.40} is not among amx, avx512_vnni, avx2, portable and torch, or this processor "
            "lacks it; unset it"
        )
    return NativeKernels(library, address)


def check_structures(library: ctypes.CDLL) -> None:
    """Raises ChuanError where the library was compiled from another version of kernels.h."""
    structures = (LinearStruct, LayerStruct, ShapeStruct, SequenceStruct, BatchStruct, KernelsStruct)
    try:
        sizes = (c_int32 * len(structures)).in_dll(library, "chuan_sizes")
    except ValueError:  # older than this check
        sizes = (c_int32 * len(structures))()
    if list(sizes) != [ctypes.sizeof(structure) for structure in structures]:
        raise ChuanError("the compiled kernels are of another version than the package; install the package again")


def describe_linear(
    weight: Tensor, width: int, outputs: int, bits: int, group: int, scale: Tensor, bias: Tensor | None
) -> LinearStruct:
    """The structure of a weight; it points into the tensors, which must outlive it.

    weight: panels; or (N, K) int8, contiguous, which the kernels pack anew each time.
    scale: (N padded,) float32 at 8 bits; (panels, groups, 16) bfloat16 at 4. bias: (N padded,) float32.
    """
    inputs = -(-width // group) * group
    struct = LinearStruct(None, None, None, None, None, outputs, width, inputs, bits, group)
    if weight.dtype == torch.int8:
        struct.rows = _address(weight)
    else:
        struct.panels = _address(weight)
    if bits == 8:
        struct.scale = _address(scale)
    else:
        struct.group_scale = _address(scale)
    if bias is not None:
        struct.bias = _address(bias)
    return struct


def _address(tensor: Tensor) -> c_void_p:
    return c_void_p(tensor.data_ptr())
