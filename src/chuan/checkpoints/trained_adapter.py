"""The folder of an adapter that Chuan trained: PEFT's two files, and beside them what a merge has to know.

In: pairs of matrices, a chat format. Out: a folder that is whole or not there; what is read back from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from chuan.checkpoints.adapter import CONFIG, WEIGHTS, read_pairs
from chuan.checkpoints.card import Origin, write_card
from chuan.checkpoints.checkpoint import Checkpoint
from chuan.checkpoints.folder import read_role_ids
from chuan.checkpoints.save import Extras
from chuan.checkpoints.weights import save_tensors
from chuan.errors import ChuanError
from chuan.json_file import read_json, read_json_if_there, save_json
from chuan.staging import staged_folder

_BASE = "base.json"  # the bits of the model that the adapter was trained beside
_GENERATION, _TEMPLATE = "generation_config.json", "chat_template.jinja"


def save_adapter(
    folder: Path,
    config: Mapping[str, Any],
    halves: Mapping[str, Tensor],
    origin: Origin | None,
    bits: int,
    chat: Extras | None,
) -> None:
    """`halves` are named as PEFT names them, `bits` are the base's; `chat` is the chat format that the merged model is
    to have, where it is not the base's own."""
    with staged_folder(folder) as temporary:
        save_tensors(temporary / WEIGHTS, {key: half.contiguous() for key, half in halves.items()}, {"format": "pt"})
        save_json(temporary / CONFIG, config)
        save_json(temporary / _BASE, {"bits": bits})
        if chat is not None:
            save_json(temporary / _GENERATION, chat.generation_config)
            (temporary / _TEMPLATE).write_text(chat.chat_template or "", encoding="utf-8")
        read_pairs(temporary, config)  # what cannot be read again gets no name
        facts = {"written as": "a LoRA adapter (PEFT)", "trained beside": f"its base in {bits} bits"}
        write_card(temporary, origin, facts)


def read_base(folder: Path) -> tuple[str | None, int | None]:
    """The model that an adapter belongs to, and the bits that it had; None where nobody wrote it down."""
    base = read_json(folder / CONFIG).get("base_model_name_or_path")
    bits = read_json_if_there(folder / _BASE).get("bits")
    return (base if isinstance(base, str) and base else None), (bits if bits in (16, 8, 4) else None)


def apply_chat(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """The checkpoint with the chat format that an adapter brings, if it brings one."""
    if not ((folder / _TEMPLATE).is_file() and (folder / _GENERATION).is_file()):
        return checkpoint
    generation = read_json(folder / _GENERATION)
    try:
        template = (folder / _TEMPLATE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ChuanError(f"{folder / _TEMPLATE} cannot be read as UTF-8; fetch it again") from None
    roles = read_role_ids(generation, checkpoint.config.vocab_size)
    return replace(checkpoint, generation_config=generation, chat_template=template or None, role_ids=roles)
