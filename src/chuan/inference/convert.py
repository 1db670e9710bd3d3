"""From any model that Chuan opens to the files that another engine opens.

In: a name, folder or GGUF, and what to make of it. Out: a Llama folder, a Baichuan folder, or a GGUF. Weights stream
from the source to the target: the model is never in memory as a whole.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from chuan.checkpoints.adapter import convert_adapter, is_adapter, read_adapter_origin
from chuan.checkpoints.card import Origin, write_card
from chuan.checkpoints.catalogue import expand, resolve_model
from chuan.checkpoints.checkpoint import Checkpoint, CheckpointSource, Progress
from chuan.checkpoints.gguf_writer import GGUF_TYPES, GGUFType, save_gguf
from chuan.checkpoints.save import Extras, save_folder
from chuan.checkpoints.source import WeightSource, describe_check
from chuan.errors import ChuanError
from chuan.inference.calibrate import CalibratedSource, load_windows
from chuan.inference.load import build_extras, check_bits, check_tokenizer, open_checkpoint
from chuan.inference.sampling import read_sampling_options
from chuan.staging import check_free, staged_folder
from chuan.tokenizer.spm import SentencePieceTokenizer
from chuan.tokenizer.tokenizer import Tokenizer

Target = Literal["llama", "baichuan", "gguf"]
_TYPE_OF_BITS: dict[int | None, GGUFType] = {8: "q8_0", 4: "q4_0"}


@dataclass(frozen=True)
class Conversion:
    """What was made: where, from what, and one line on how far its logits lie from the source's."""

    path: Path
    origin: Origin | None
    checked: str


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    to: Target | None = None,
    bits: int | None = None,
    gguf_type: GGUFType | None = None,
    progress: Progress | None = None,
    calibrate: str | os.PathLike[str] | None = None,
) -> Conversion:
    """Writes `source` as a `to` at `target`; None is "gguf" where `target` ends in .gguf, else "llama".

    bits: 16, 8 or 4; None keeps what the source has. gguf_type: f16, bf16, q8_0, q4_0 or q4_1 for a GGUF; None is what
    `bits` means, else the source's own 16-bit type. A `target` that does not end in .gguf is a folder around the GGUF.
    calibrate: a text file, UTF-8, of the kind the model is for; with bits=4 the weights are fitted to it (GPTQ).
    A LoRA adapter becomes one for the other layout. Raises ChuanError with one line; then nothing was written.
    """
    destination = expand(target)
    to, gguf_type = _choose_options(to, gguf_type, destination)
    _check_options(to, bits, gguf_type)
    if calibrate is not None and (to == "gguf" or bits != 4):
        raise ChuanError("--calibrate is for folders of 4 bits: give it with --bits 4, and without --to gguf")
    path = resolve_model(source)
    _check_destination(path, destination)
    if is_adapter(path):
        if to == "gguf" or bits is not None:
            raise ChuanError(f"{path} is a LoRA adapter; it becomes one for llama or for baichuan, without --bits")
        made = convert_adapter(path, destination, to)
        return Conversion(made, read_adapter_origin(path), "re-opened; every delta-W equals the source's")
    checkpoint = open_checkpoint(path)
    tokenizer = checkpoint.load_tokenizer()
    check_tokenizer(checkpoint, tokenizer)
    extras = build_extras(os.fspath(source), checkpoint, tokenizer, gguf=to == "gguf")
    if to == "gguf":
        read_sampling_options(checkpoint.generation_config)  # the header has a place for each, of its own type
        tokenizer = _choose_vocabulary(checkpoint, tokenizer)
        kind = gguf_type or _TYPE_OF_BITS.get(bits)
        return _convert_to_gguf(checkpoint, tokenizer, extras, destination, kind, progress)
    weights: WeightSource = CheckpointSource(checkpoint, bits)
    if calibrate is not None:
        if checkpoint.bits == 4:
            raise ChuanError(f"{path} has 4 bits already; calibrate from the model's 16-bit weights")
        windows = load_windows(expand(calibrate), tokenizer, checkpoint.config.context_length)
        weights = CalibratedSource(weights, windows)
    difference = save_folder(destination, weights, tokenizer, extras, to, progress=progress)
    return Conversion(destination, extras.origin, describe_check(difference))


def _convert_to_gguf(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    extras: Extras,
    destination: Path,
    kind: GGUFType | None,
    progress: Progress | None,
) -> Conversion:
    weights = CheckpointSource(checkpoint, 16)  # blocks of its own: other few bits have to be widened first
    if kind is None:
        kind = "bf16" if str(weights.dtype) == "torch.bfloat16" else "f16"
    roles = checkpoint.role_ids
    if destination.suffix.lower() == ".gguf":
        difference = save_gguf(destination, weights, tokenizer, extras, kind, roles, progress)
        return Conversion(destination, extras.origin, describe_check(difference))
    check_free(destination)
    with staged_folder(destination) as temporary:
        file = temporary / f"{destination.name}-{kind.upper()}.gguf"
        difference = save_gguf(file, weights, tokenizer, extras, kind, roles, progress)
        facts = {"written as": f"a GGUF ({file.name})", "weights": kind.upper(), "checked": describe_check(difference)}
        write_card(temporary, extras.origin, facts)
    return Conversion(destination, extras.origin, describe_check(difference))


def _choose_options(to: str | None, gguf_type: str | None, destination: Path) -> Any:
    """What was asked for, in small letters; the target's name says the kind where nobody did."""
    named = "gguf" if destination.suffix.lower() == ".gguf" else "llama"
    return (to or named).lower(), gguf_type.lower() if gguf_type is not None else None


def _check_options(to: str, bits: int | None, gguf_type: str | None) -> None:
    if to not in ("llama", "baichuan", "gguf"):
        raise ChuanError(f"--to {to!r:.40} is not known; use llama, baichuan or gguf")
    check_bits(bits)
    if gguf_type is not None and gguf_type not in GGUF_TYPES:
        raise ChuanError(f"--type {gguf_type!r:.40} is not known; use {', '.join(GGUF_TYPES)}")
    if gguf_type is not None and to != "gguf":
        raise ChuanError("--type is for --to gguf; for folders say --bits 8 or 4")
    if gguf_type is not None and bits is not None:
        raise ChuanError("--type says the bits already; leave --bits out")


def _check_destination(source: Path, destination: Path) -> None:
    """Before anything is read: free, and not inside of what is being read."""
    check_free(destination)
    inside, folder = Path(os.path.realpath(destination)), Path(os.path.realpath(source))
    if source.is_dir() and inside.is_relative_to(folder):
        raise ChuanError(f"{destination} lies inside of the source {source}; choose a place outside")


def _choose_vocabulary(checkpoint: Checkpoint, tokenizer: Tokenizer) -> Tokenizer:
    """The sentencepiece model of a folder that has both kinds, if it is the same: llama.cpp has a name for that one."""
    file = checkpoint.path / "tokenizer.model"
    if isinstance(tokenizer, SentencePieceTokenizer) or not checkpoint.path.is_dir() or not file.is_file():
        return tokenizer
    add_bos = bool(tokenizer.prompt_prefix)
    original = SentencePieceTokenizer(file.read_bytes(), checkpoint.role_ids or (), add_bos)
    sample = "The river 川流不息, 2026年！\n\t x  y 😀"
    same = original.vocab_size == tokenizer.vocab_size and original.encode(sample) == tokenizer.encode(sample)
    return original if same else tokenizer
