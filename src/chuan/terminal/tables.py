"""What `chuan models` and `chuan info` print.

In: the catalogue, or a checkpoint's description. Out: a table, plain when piped.
"""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from chuan.checkpoints.adapter import describe_adapter, is_adapter, read_adapter_origin
from chuan.checkpoints.catalogue import CATALOGUE, is_here, resolve_model
from chuan.checkpoints.weights import has_weights
from chuan.errors import escape_unprintable
from chuan.inference.load import build_origin, open_checkpoint
from chuan.model.memory import estimate_cache, estimate_weights
from chuan.units import format_size


def print_models() -> None:
    """Names, what they are, whether they are on this machine."""
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "download", "licence of the weights", "here", "what it is"):
        table.add_column(heading, overflow="fold")
    for name, source in CATALOGUE.items():
        here = "yes" if is_here(name) else "no"
        table.add_row(name, format_size(source.size), source.licence, here, source.description)
    _print(table)


def print_info(model: str) -> None:
    """What it is, where it came from, what it needs in memory, and under which licence; only headers are read."""
    path = resolve_model(model, weights=False)
    if is_adapter(path):
        rows = {"model": model, "path": str(path), "kind": "LoRA adapter; chuan convert changes its layout"}
        print_rows(rows | describe_adapter(path) | {"licence of the weights": read_adapter_origin(path).licence})
        return
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    origin = build_origin(model, checkpoint)
    if checkpoint.role_ids is not None:
        chat = "Baichuan format"
    else:
        chat = "its own template" if checkpoint.chat_template is not None else "none: a base model, use chuan generate"
    made_from = ", ".join(origin.made_from) or ("-" if origin.name == path.name else origin.name)
    if origin.made_from and origin.made_from_revision:
        made_from += f" at revision {origin.made_from_revision}"
    bits = checkpoint.bits
    if has_weights(checkpoint.path):
        bits = checkpoint.open_weights().bits
    rows = {
        "model": model,
        "path": str(path),
        "kind": checkpoint.kind if bits == 16 else f"{checkpoint.kind}, {bits}-bit",
        "made from": made_from,
        "revision": origin.revision or "-",
        "licence of the weights": origin.licence,
        "parameters": f"{config.parameter_count:,}",
        "layers x width": f"{config.num_hidden_layers} x {config.hidden_size}",
        "heads (keys)": f"{config.num_attention_heads} ({config.num_key_value_heads})",
        "vocabulary": f"{config.vocab_size:,}",
        "context": f"{config.context_length:,} tokens",
        "chat": chat,
        **{f"memory at {bits} bits": format_size(estimate_weights(config, bits)) for bits in (16, 8, 4)},
        "and a full context": format_size(estimate_cache(config, config.context_length)),
    }
    print_rows({name: value for name, value in rows.items() if value != "-"})


def print_rows(rows: Mapping[str, str]) -> None:
    """Names and values in two columns."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(escape_unprintable(value)))  # files' words are neither markup nor control sequences
    _print(table)


def _print(table: Table) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=1000)  # piped, a line is never folded: programs read it
    console.print(table)
