"""From a LoRA adapter and its model to a model of its own, and back.

In: an adapter's folder, a model. Out: a Llama folder in 16 bits or float32.
"""

from __future__ import annotations

import os

from chuan.checkpoints.adapter import is_adapter, load_changes
from chuan.checkpoints.catalogue import expand, resolve_model
from chuan.checkpoints.checkpoint import Progress
from chuan.checkpoints.merge import MergedSource
from chuan.checkpoints.save import save_folder
from chuan.checkpoints.source import describe_check
from chuan.checkpoints.trained_adapter import apply_chat, read_base
from chuan.errors import ChuanError
from chuan.inference.convert import Conversion
from chuan.inference.load import build_extras, check_bits, check_tokenizer, open_checkpoint


def merge(
    adapter: str | os.PathLike[str],
    target: str | os.PathLike[str],
    base: str | os.PathLike[str] | None = None,
    bits: int | None = None,
    unmerge: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Writes the model `base` with the adapter's change in its weights to the folder `target`.

    base: None is the model that the adapter names. bits: those that the base had when the adapter was trained (16, 8 or
    4): the change is added to the weights that it saw, widened to floats; None is what the adapter's folder says, else
    what the base has. unmerge takes the change out of a merged `base`. Returns how far the logits of what was written
    lie from those of the base with the adapter beside it. Raises ChuanError with one line; then nothing was written.
    """
    folder = resolve_model(adapter)
    if not is_adapter(folder):
        raise ChuanError(f"{folder} is no LoRA adapter; it has no adapter_config.json, or is a model")
    named, trained = read_base(folder)
    model = base if base is not None else named
    if model is None:
        raise ChuanError(f"{folder} does not say which model it belongs to; name it as --base")
    check_bits(bits)
    checkpoint = open_checkpoint(resolve_model(model))
    if not unmerge:
        checkpoint = apply_chat(checkpoint, folder)
    tokenizer = checkpoint.load_tokenizer()
    check_tokenizer(checkpoint, tokenizer)
    extras = build_extras(os.fspath(model), checkpoint, tokenizer)
    chosen = bits if bits is not None else (None if unmerge else trained)
    weights = MergedSource(checkpoint, load_changes(folder), chosen, -1 if unmerge else 1)
    destination = expand(target)
    difference = save_folder(destination, weights, tokenizer, extras, progress=progress)
    return Conversion(destination, extras.origin, describe_check(difference))
