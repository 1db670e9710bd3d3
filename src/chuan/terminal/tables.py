"""What `chuan models` and `chuan info` print.

In: the catalogue, or a checkpoint's description. Out: a table, plain when piped.
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from chuan.checkpoints.catalogue import CATALOGUE, cached_path, resolve_model
from chuan.inference.load import open_checkpoint
from chuan.inference.memory import estimate_cache, estimate_weights


def print_models() -> None:
    """Names, what they are, whether they are on this machine."""
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "download", "licence of the weights", "here", "what it is"):
        table.add_column(heading, overflow="fold")
    for name, source in CATALOGUE.items():
        here = "yes" if cached_path(source) is not None else "no"
        table.add_row(name, _gigabytes(source.size), source.licence, here, source.description)
    _print(table)


def print_info(model: str) -> None:
    """Kind, shape and memory; only headers are read."""
    path = resolve_model(model)
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    if checkpoint.role_ids is not None:
        chat = "Baichuan format"
    else:
        chat = "its own template" if checkpoint.chat_template is not None else "none: a base model, use chuan generate"
    rows = {
        "model": model,
        "path": str(path),
        "kind": checkpoint.kind if checkpoint.bits == 16 else f"{checkpoint.kind}, {checkpoint.bits}-bit",
        "parameters": f"{config.parameter_count:,}",
        "layers x width": f"{config.num_hidden_layers} x {config.hidden_size}",
        "heads (keys)": f"{config.num_attention_heads} ({config.num_key_value_heads})",
        "vocabulary": f"{config.vocab_size:,}",
        "context": f"{config.context_length:,} tokens",
        "chat": chat,
        "memory at 16 bits": _gigabytes(estimate_weights(config, 16)),
        "memory at 8 bits": _gigabytes(estimate_weights(config, 8)),
        "and a full context": _gigabytes(estimate_cache(config, config.context_length)),
    }
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    _print(table)


def _print(table: Table) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=1000)  # piped, a line is never folded: programs read it
    console.print(table)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
