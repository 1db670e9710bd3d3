"""Files of tensors: names, shapes, types, and tensors read one at a time.

In: a folder with safetensors or `.bin` files. Out: `TensorFiles`. Files are mapped, not loaded, so that a tensor costs
memory only once somebody copies it. Nothing in a file is ever executed. Knows no quantization, layout or model.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from chuan.checkpoints.ledger import Ledger
from chuan.errors import ChuanError, first_line
from chuan.json_file import read_json
from chuan.staging import check_name, is_partial

# What is noted of a file whose checksums were right.
_CHECKED = "crc32"

# What old bitsandbytes puts beside the tensors of a `.bin`: a format's name, a list that describes 4-bit codes.
_PLAIN = (".weight_format", ".quant_state")

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class TensorFiles(Protocol):
    """Named tensors, readable one at a time. `objects` are plain values that a `.bin` holds beside them."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape, by name."""
        ...

    @property
    def dtypes(self) -> Mapping[str, torch.dtype | None]:
        """Every tensor's type, by name; None for types that no model of this family has."""
        ...

    @property
    def objects(self) -> Mapping[str, Any]:
        """Lists and strings, by name."""
        ...

    def read(self, name: str) -> Tensor:
        """The tensor; it may be a view of the mapped file, so copy before the file may change."""
        ...

    def locate(self, name: str) -> str:
        """The file that holds it, for messages."""
        ...


def open_tensor_files(folder: Path) -> TensorFiles:
    """Finds a folder's weights: safetensors before `.bin`, sharded or not."""
    openers: dict[str, Callable[[Mapping[Path, set[str] | None]], TensorFiles]]
    openers = {"model.safetensors": SafetensorsWeights, "pytorch_model.bin": PickledWeights}
    for single, opener in openers.items():
        # Where both are there, transformers opens the one file too, and leaves the index alone.
        if os.path.isfile(folder / single):
            return opener({folder / single: None})
        index = folder / f"{single}.index.json"
        if os.path.isfile(index):
            return opener(_read_index(index))
    raise ChuanError(
        f"{folder} holds no weights: neither model.safetensors nor pytorch_model.bin, nor an index of shards; "
        "fetch them, or check the path"
    )


def has_weights(path: Path) -> bool:
    """Whether a folder's weights are there, or only its description; a file is its own weights."""
    names = ("model.safetensors", "pytorch_model.bin")
    return path.is_file() or any((path / name).is_file() or (path / f"{name}.index.json").is_file() for name in names)


def _read_index(index: Path) -> dict[Path, set[str] | None]:
    """The shards that an index names, each with the tensors that it must hold."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ChuanError(f"{index} has no weight_map; fetch it again")
    shards: dict[Path, set[str] | None] = {}
    names_by_file: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        if (
            not isinstance(file, str)
            or Path(file).name != file
            or "\\" in file
            or "\0" in file
            or file in ("", ".", "..")
        ):
            raise ChuanError(f"{index} names a file outside of its folder: {file!r:.80}; do not trust it")
        names_by_file.setdefault(file, set()).add(name)
    for file, names in names_by_file.items():
        path = index.parent / file
        if not os.path.isfile(path):  # pathlib's raises where a name is too long
            raise ChuanError(f"the shard {path!s:.300} is missing; fetch it again")
        shards[path] = names
    return shards


class SafetensorsWeights:
    """Safetensors files; one that carries Chuan's checksums is checked against them once, until it changes.

    Each tensor when it is read; when all of a file were read and right, that is noted for this machine.
    """

    def __init__(self, files: Mapping[Path, set[str] | None]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype | None] = {}
        self.objects: dict[str, Any] = {}
        self._home: dict[str, tuple[Path, Any]] = {}
        self._unchecked: dict[Path, dict[str, int]] = {}
        self._changed: dict[Path, int] = {}
        for path, expected in files.items():
            check_name(path)
            try:
                with path.open("rb"):  # the library takes what may not be read for missing
                    self._changed[path] = path.stat().st_mtime_ns
                handle = safe_open(path, framework="pt", device="cpu")
                for name in handle.keys():  # noqa: SIM118 (not a dict)
                    _check_new(name, path, self._home)
                    description = handle.get_slice(name)
                    self.shapes[name] = tuple(description.get_shape())
                    self.dtypes[name] = _DTYPES.get(description.get_dtype())
                    self._home[name] = (path, handle)
                metadata = handle.metadata() or {}
            except PermissionError:
                raise _unreadable(path) from None
            except (SafetensorError, OSError, ValueError) as error:
                raise ChuanError(f"{path} is damaged or cut short ({first_line(error)}); fetch it again") from None
            checksums = _parse_checksums(metadata.get("crc32"), path)
            if checksums and not Ledger(path).knows(path.absolute(), _CHECKED):
                self._unchecked[path] = checksums
            _check_complete(path, expected, self.shapes)

    def read(self, name: str) -> Tensor:
        path, handle = self._home[name]
        try:
            tensor: Tensor = handle.get_tensor(name)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise ChuanError(f"{path} is damaged at {name} ({first_line(error)}); fetch it again") from None
        self._check(name, tensor, path)
        return tensor

    def locate(self, name: str) -> str:
        return str(self._home[name][0])

    def _check(self, name: str, tensor: Tensor, path: Path) -> None:
        left = self._unchecked.get(path, {})
        if name not in left:
            return
        if left[name] != checksum(tensor):
            raise ChuanError(f"{path} is damaged: the checksum of {name} does not match; fetch it again")
        del left[name]
        if not left and not is_partial(path) and path.stat().st_mtime_ns == self._changed[path]:
            Ledger(path).note(path.absolute(), _CHECKED)


class PickledWeights:
    """`.bin` files, mapped and read by torch's restricted unpickler: tensors and plain containers, never code."""

    def __init__(self, files: Mapping[Path, set[str] | None]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype | None] = {}
        self.objects: dict[str, Any] = {}
        self._home: dict[str, tuple[Path, Any]] = {}
        for path, expected in files.items():
            for name, value in _load_bin(path).items():
                _check_new(name, path, self._home)
                self._home[name] = (path, value)
                if isinstance(value, Tensor):
                    self.shapes[name] = tuple(value.shape)
                    self.dtypes[name] = value.dtype
                else:
                    self.objects[name] = value
            _check_complete(path, expected, self._home)

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._home[name][1]
        return tensor.detach()  # old files hold parameters

    def locate(self, name: str) -> str:
        return str(self._home[name][0])


def checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's bytes."""
    return zlib.crc32(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file; raises OSError with the disk's own number where the disk refuses."""
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        number = re.search(r"os error ([0-9]+)", str(error))
        code = int(number[1]) if number else None
        raise (OSError(str(error)) if code is None else OSError(code, os.strerror(code))) from None


def _parse_checksums(text: str | None, path: Path) -> dict[str, int]:
    if text is None:
        return {}
    try:
        return {str(name): int(value) for name, value in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        raise ChuanError(f"{path} is damaged: its checksums cannot be read; fetch it again") from None


def _check_new(name: str, path: Path, home: Mapping[str, tuple[Path, Any]]) -> None:
    if name in home:
        raise ChuanError(
            f"{name} is in {home[name][0]} and again in {path}: shards of two models or versions; fetch one whole set"
        )


def _check_complete(path: Path, expected: set[str] | None, found: Mapping[str, Any]) -> None:
    missing = sorted((expected or set()) - found.keys())
    if missing:
        raise ChuanError(
            f"{path} lacks {missing[0]} (and {len(missing) - 1} more), which its index promises; fetch it again"
        )


def _load_bin(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"  # files from before torch 1.6 are bare pickles and cannot be mapped
        loaded = torch.load(path, map_location="cpu", mmap=zipped, weights_only=True)
    except pickle.UnpicklingError:
        raise ChuanError(
            f"{path} is damaged, or holds more than tensors (a pickle can carry code); not opened, use safetensors"
        ) from None
    except PermissionError:
        raise _unreadable(path) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ChuanError(f"{path} is damaged or cut short ({first_line(error):.120}); fetch it again") from None
    if not isinstance(loaded, dict):
        raise ChuanError(f"{path} holds no table of tensors; fetch it again")
    for key, value in loaded.items():
        plain = isinstance(key, str) and key.endswith(_PLAIN) and isinstance(value, list | tuple | str)
        if not (isinstance(key, str) and (isinstance(value, Tensor) or plain)):
            raise ChuanError(f"{path} holds something other than a tensor at {key!r:.80}; use the 16-bit weights")
    return loaded


def _unreadable(path: Path) -> ChuanError:
    return ChuanError(f"{path} cannot be read: you have no permission; ask whoever owns it")
