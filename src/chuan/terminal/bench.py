"""What `chuan bench` shows: what it is measuring, then a table, or JSON for programs.

In: the options of the command. Out: stdout; an exit code.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from chuan.errors import ChuanError
from chuan.inference.bench import CONTEXT, BenchResult, Speed, run_bench
from chuan.terminal.tables import print_rows
from chuan.units import format_size


def run_bench_command(
    model: str,
    bits: int | None,
    device: str,
    dtype: str,
    prompt_tokens: int,
    new_tokens: int,
    sequences: str,
    as_json: bool,
) -> int:
    """Measures; what it is at stands on stderr, where somebody watches."""
    counts = read_counts(sequences)
    console = Console(stderr=True)
    with console.status("", spinner="line") as status:

        def progress(what: str) -> None:
            status.update(f"Measuring: {what}")

        result = run_bench(model, bits, device, dtype, prompt_tokens, new_tokens, counts, progress)  # type: ignore[arg-type]
    if as_json:
        print(render_json(result))
    else:
        print_result(result)
    return 0


def read_counts(text: str) -> list[int]:
    """ "1,8" -> [1, 8]."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 0 < int(part) <= 64 for part in parts):
        raise ChuanError(f"--sequences {text!r:.40} is not numbers from 1 to 64 with commas between, such as 1,8")
    return [int(part) for part in parts]


def render_json(result: BenchResult) -> str:
    """Every figure, in seconds, bytes and operations, with the rates that follow from them."""
    table = dataclasses.asdict(result)
    table["speeds"] = [_describe(speed) for speed in result.speeds]
    return json.dumps(table, indent=2, ensure_ascii=False)


def print_result(result: BenchResult) -> None:
    """For people: what was loaded, then a line a phase, with the share of what the machine reaches."""
    bits = "" if result.bits == 16 else f", {result.bits}-bit linears"
    place = f"{result.device}, {result.threads} threads" if result.device == "cpu" else result.device
    print_rows(
        {
            "model": result.model,
            "computes in": f"{result.dtype}{bits}, on {place}",
            "weights": format_size(result.weight_bytes),
            "loaded in": f"{result.load_seconds:.2f} s",
            "first token after": f"{result.first_token_seconds:.2f} s (a prompt of one token, cold)",
            "peak memory": format_size(result.peak_memory),
        }
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for heading in ("tokens/s", "GB/s", "of memory", "GOP/s", "of compute"):
        table.add_column(heading, justify="right")
    limits = result.limits
    for speed in result.speeds:
        table.add_row(
            _name(speed),
            f"{speed.tokens_per_second:,.1f}",
            f"{speed.bandwidth / 1e9:,.1f}",
            f"{speed.bandwidth / limits.bandwidth:.0%}",
            f"{speed.rate / 1e9:,.0f}",
            f"{speed.rate / limits.rate:.0%}",
        )
    table.add_row(
        "what this machine reaches", "", f"{limits.bandwidth / 1e9:,.1f}", "", f"{limits.rate / 1e9:,.0f}", ""
    )
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=1000)  # piped, a line is never folded: programs read it
    console.print()
    console.print(table)


def _name(speed: Speed) -> str:
    if speed.phase == "prefill":
        return f"prefill, {speed.tokens:,} tokens"
    together = "1 sequence" if speed.sequences == 1 else f"{speed.sequences} sequences"
    return f"decode, {together} behind {CONTEXT} tokens"


def _describe(speed: Speed) -> dict[str, Any]:
    rates = {"tokens_per_second": speed.tokens_per_second, "bandwidth": speed.bandwidth, "rate": speed.rate}
    return dataclasses.asdict(speed) | rates
