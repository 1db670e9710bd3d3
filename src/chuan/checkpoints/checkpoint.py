"""A checkpoint that has been opened and described, but not loaded; and loading its weights.

In: what `folder` or `gguf` found on disk. Out: its weights under the decoder's names, at the bits asked for, one at a
time; or a `Decoder` filled with them. Peak memory is the loaded model and one weight. Knows no chat and no generation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chuan.checkpoints.layouts import IGNORED, Layout, list_weights
from chuan.checkpoints.stored import Weights
from chuan.errors import ChuanError
from chuan.model.config import ModelConfig
from chuan.model.decoder import Decoder
from chuan.quantization.integer import IntegerLinear, apply_integer_arithmetic
from chuan.quantization.linear import QuantizedLinear
from chuan.quantization.methods import Stored, dequantize, is_quantizable, quantize
from chuan.tokenizer.tokenizer import Tokenizer

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Checkpoint:
    """What a folder or file holds, read without its weights.

    `bits` is the precision of the linears as the configuration declares it, 16 (any float), 8 or 4. `special` names the
    special tokens by role; `role_ids` are the (user, assistant) ids of the Baichuan chat format, where there is one.
    `read_card` gives what the files say about licence and origin, under the names of a model card's front matter.
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
    read_card: Callable[[], Mapping[str, Any]] = dict


class CheckpointSource:
    """A checkpoint's weights under the decoder's names, each at the bits asked for (None: as it is stored)."""

    def __init__(self, checkpoint: Checkpoint, bits: int | None = None, dtype: torch.dtype | None = None) -> None:
        """Checks names, shapes and shards before anything is read. `dtype` None is that of the stored floats."""
        self.config = checkpoint.config
        self._checkpoint = checkpoint
        self._bits = bits
        self._weights = checkpoint.open_weights()
        check_weights(checkpoint, self._weights)
        self.dtype = dtype if dtype is not None else self._weights.dtype

    @property
    def stored_bits(self) -> int:
        """The fewest bits that a weight will have: those asked for, else the files' own."""
        return self._bits or self._weights.bits

    def read(self, name: str) -> Stored:
        """The weight as the file means it, with its rows where the decoder has them."""
        part = self._checkpoint.layout[name]
        keep = is_quantizable(name) and self._bits != 16
        whole = self._weights.read(part.source) if keep else self._weights.read_float(part.source)
        stored = part.take(whole, self.dtype)
        where = f"{part.source} in {self._weights.locate(part.source)}"
        if isinstance(stored, QuantizedLinear):
            return stored
        if not stored.is_floating_point():
            raise ChuanError(f"{where} holds {str(stored.dtype)[6:]}, not floats; use the model's 16-bit weights")
        if not _is_finite(stored):
            raise ChuanError(f"{where} holds NaN or infinity; fetch the file again")
        return stored

    def fit(self, name: str, stored: Stored) -> Stored:
        """What was read, at the bits asked for; floats in the type of the checkpoint's."""
        if is_quantizable(name) and self._bits in (4, 8):
            if isinstance(stored, QuantizedLinear) and stored.bits == self._bits:
                return stored
            # 8-bit scales are float32, 4-bit scales are of the weight's type.
            dtype = torch.float32 if self._bits == 8 else self.dtype
            return quantize(dequantize(stored).to(dtype), self._bits)
        if isinstance(stored, QuantizedLinear):
            return stored
        narrowed = _narrow(stored, self.dtype)
        if narrowed.dtype != stored.dtype and not _is_finite(narrowed):
            source = self._checkpoint.layout[name].source
            raise ChuanError(
                f"{source} in {self._weights.locate(source)} has values too large for {str(self.dtype)[6:]}, the type "
                "of the model's linears; save the source in bfloat16 or float32 throughout, then convert it"
            )
        return narrowed


def load_decoder(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    bits: int | None = None,
    progress: Progress | None = None,
    integer: bool = False,
) -> Decoder:
    """Reads the weights into a decoder in eval mode; `bits` 16, 8 or 4, None for what the checkpoint has.

    Everything is checked before anything is read: names, shapes, shards. `progress` hears (tensors done, of how many).
    With `integer` few-bit linears are packed for integer arithmetic, and the head with them; 8 bits as the file has
    them wait for it there, mapped.
    """
    source = CheckpointSource(checkpoint, bits, dtype)
    with torch.device("meta"):
        decoder = Decoder(checkpoint.config)
    names = list(list_weights(checkpoint.config))
    for done, name in enumerate(names):
        module_name, _, attribute = name.rpartition(".")
        found = stored = source.read(name)
        view = checkpoint.layout[name].change is None  # of the mapped file
        if bits in (4, 8) and is_quantizable(name):
            stored = source.fit(name, stored.to(device))
        if integer and IntegerLinear.takes(stored):
            _place_linear(decoder, module_name, IntegerLinear(stored, packed=not (view and stored is found)))
        elif isinstance(stored, QuantizedLinear):
            for buffer_name, buffer in list(stored.named_buffers()):
                # Copied, because it may be a view of a mapped file.
                setattr(stored, buffer_name, buffer.to(device, copy=True).contiguous())
            _place_linear(decoder, module_name, stored)
        else:
            # What is still a view is copied; what was computed is not, because a head is 1 GB.
            tensor = stored.to(device=device, dtype=dtype, copy=view)
            parameter = nn.Parameter(tensor.contiguous(), requires_grad=False)
            setattr(decoder.get_submodule(module_name), attribute, parameter)
        if progress is not None:
            progress(done + 1, len(names))
    decoder.tie_head()
    if integer:
        apply_integer_arithmetic(decoder)
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
    unused = sorted(name for name in weights.shapes.keys() - used if not IGNORED.fullmatch(name))
    if checkpoint.config.tie_word_embeddings:
        unused = [name for name in unused if name not in ("lm_head.weight", "output.weight")]
    if unused:
        raise ChuanError(
            f"{checkpoint.path} has the weight {unused[0]} (and {len(unused) - 1} more) that its configuration does "
            "not account for; it is not a model of this family"
        )


def _place_linear(decoder: Decoder, name: str, linear: QuantizedLinear) -> None:
    """Puts a quantized layer where the plain one was."""
    plain = decoder.get_submodule(name)
    assert isinstance(plain, nn.Linear)
    linear.bias = plain.bias  # still empty; the file's comes behind the weight
    decoder.set_submodule(name, linear)


def _is_finite(tensor: Tensor) -> bool:
    """One pass that any NaN or infinity survives: a flipped bit should not surface as a strange answer."""
    if tensor.dtype.itemsize == 1:
        tensor = tensor.float()  # torch seeks no extremes of 8-bit floats
    return tensor.numel() == 0 or all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor))


def _narrow(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in the checkpoint's type; float32 that does not fit it (norms, often) stays if it would change."""
    narrowed = tensor.to(dtype)
    widened = tensor.dim() == 2 or torch.equal(narrowed.to(tensor.dtype), tensor)
    return narrowed if widened else tensor
