"""From a name to a `LanguageModel`.

In: a catalogue name, hub id, folder or GGUF file. Out: the model, ready to answer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from chuan.chat.baichuan import BaichuanChat, render_template
from chuan.chat.formats import ChatFormat
from chuan.chat.jinja import JinjaChat
from chuan.checkpoints.card import Origin, read_origin
from chuan.checkpoints.catalogue import CATALOGUE, describe_source, find_entry, resolve_model
from chuan.checkpoints.checkpoint import Checkpoint, Progress, load_decoder
from chuan.checkpoints.folder import open_folder
from chuan.checkpoints.gguf import open_gguf
from chuan.checkpoints.save import Extras
from chuan.errors import ChuanError
from chuan.inference.build import build_runner
from chuan.inference.device import choose_device, choose_dtype
from chuan.inference.language_model import LanguageModel
from chuan.inference.native import NativeRunner
from chuan.inference.sampling import read_sampling_options
from chuan.quantization.kernels.bindings import load_kernels
from chuan.staging import is_partial
from chuan.tokenizer.convert import OPENING_MARK
from chuan.tokenizer.tokenizer import Tokenizer


def load(
    model: str | os.PathLike[str],
    bits: Literal[16, 8, 4] | None = None,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    progress: Progress | None = None,
) -> LanguageModel:
    """Opens a model by catalogue name, hub id, folder or `.gguf` file.

    bits: 16 (floats), 8 (int8, one scale an output) or 4 (groups of 32); None keeps what the checkpoint has. device:
    "auto", "cpu", "cuda" ... dtype: what floats are computed in; "auto" is what the hardware computes fast, and for 8
    and 4 bits on a CPU integer arithmetic (`chuan.quantization.integer`), where a dtype that is named means few-bit
    weights and float activations, slowly. progress hears (tensors read, of how many). Nothing from the model's folder
    is ever executed. Raises ChuanError with one line that says what to do.
    """
    check_bits(bits)
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    checkpoint = open_checkpoint(resolve_model(model))
    tokenizer = checkpoint.load_tokenizer()
    check_tokenizer(checkpoint, tokenizer)
    chat_format = build_chat_format(checkpoint, tokenizer)
    defaults = read_sampling_options(checkpoint.generation_config)
    stop_ids = read_stop_ids(checkpoint.generation_config, tokenizer)
    integer = dtype == "auto" and chosen_device.type == "cpu"
    # The kernels compute in float32 and look embeddings up: 16 bits are enough there, on processors slow at them too.
    native = integer and (bits or checkpoint.bits) < 16 and load_kernels() is not None
    loaded_dtype = torch.bfloat16 if native else chosen_dtype
    decoder = load_decoder(checkpoint, loaded_dtype, chosen_device, bits, progress, integer)
    if native and not NativeRunner.takes(decoder):
        for parameter in decoder.parameters():
            parameter.data = parameter.data.to(chosen_dtype)
    extras = build_extras(os.fspath(model), checkpoint, tokenizer)
    runner = build_runner(decoder)
    return LanguageModel(os.fspath(model), decoder, runner, tokenizer, chat_format, defaults, stop_ids, extras)


def open_checkpoint(path: Path) -> Checkpoint:
    """Reads what a folder or GGUF file says about itself, without its weights; a folder may hold just one GGUF."""
    if is_partial(path):
        raise ChuanError(f"{path} is what a write that was cut off left behind; write the model again")
    if not path.is_dir():
        return open_gguf(path)
    files = sorted(path.glob("*.gguf")) if not (path / "config.json").is_file() else []
    if len(files) > 1 and re.search(r"-[0-9]{5}-of-[0-9]{5}\.gguf$", files[0].name):
        raise ChuanError(f"{path} holds a model in parts; join them with llama.cpp's llama-gguf-split --merge")
    if len(files) > 1:
        raise ChuanError(f"{path} holds {len(files)} GGUF files; give the path of one, such as {files[0]}")
    return open_gguf(files[0]) if files else open_folder(path)


def check_bits(bits: int | None) -> None:
    """Raises ChuanError for a width of weights that there is not."""
    if bits not in (None, 16, 8, 4):
        raise ChuanError(f"bits={bits!r:.40} is not known; use 16, 8 or 4")


def build_extras(name: str, checkpoint: Checkpoint, tokenizer: Tokenizer, gguf: bool = False) -> Extras:
    """What goes beside the weights of `name` when it is written again; `gguf` into a GGUF."""
    template = choose_template(checkpoint, tokenizer, gguf)
    return Extras(checkpoint.generation_config, template, checkpoint.special, build_origin(name, checkpoint))


def build_origin(name: str, checkpoint: Checkpoint) -> Origin:
    """Where the model came from, for cards and `chuan info`."""
    source = describe_source(checkpoint.path) or describe_source(name)  # a cache's path has the revision in it
    entry = CATALOGUE.get(name) or (find_entry(source.repo_id) if source is not None else None)
    return read_origin(
        checkpoint,
        source.repo_id if source is not None else Path(os.path.abspath(name)).name or name,
        source.revision if source is not None else None,
        entry.licence if entry is not None else None,
    )


def check_tokenizer(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """No id of the vocabulary may lie beyond the embedding."""
    rows = checkpoint.config.vocab_size
    if tokenizer.vocab_size > rows:
        raise ChuanError(
            f"the tokenizer of {checkpoint.path} has {tokenizer.vocab_size} pieces but the model only {rows}; "
            "they do not belong together"
        )


def build_chat_format(checkpoint: Checkpoint, tokenizer: Tokenizer) -> ChatFormat | None:
    """Baichuan's format where the model names its role ids, else its own template, else None: a base model."""
    if checkpoint.role_ids is not None:
        return BaichuanChat(tokenizer, *checkpoint.role_ids)
    if checkpoint.chat_template is not None:
        return JinjaChat(tokenizer, checkpoint.chat_template, checkpoint.special)
    return None


def choose_template(checkpoint: Checkpoint, tokenizer: Tokenizer, gguf: bool = False) -> str | None:
    """The template that goes into a folder, or into a GGUF: Baichuan's, or the model's own."""
    names = {index: name for name, index in tokenizer.control_pieces.items()}
    if checkpoint.role_ids is None or not all(index in names for index in checkpoint.role_ids):
        return checkpoint.chat_template
    user, assistant = (names[index] for index in checkpoint.role_ids)
    return render_template(user, assistant, OPENING_MARK if tokenizer.table.strip_first_space and not gguf else None)


def read_stop_ids(generation_config: Mapping[str, Any], tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that end an answer: the file's eos (one or several), else the tokenizer's."""
    eos = generation_config.get("eos_token_id")
    ids = eos if isinstance(eos, list) else [eos]
    found = {index for index in ids if isinstance(index, int) and not isinstance(index, bool)}
    if not found and tokenizer.eos_id is not None:
        found = {tokenizer.eos_id}
    return frozenset(found)
