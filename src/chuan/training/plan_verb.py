"""What `chuan plan` prints.

In: the options of the command line. Out: stdout; an exit code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from chuan.errors import ChuanError
from chuan.recipes import load_recipe
from chuan.training.gpus import find_gpu
from chuan.training.plan import LINK_SHARE, MFU, USABLE, Forecast, Layout, plan
from chuan.training.recipe import PretrainRecipe

_SHOWN = 5


def run_plan(
    path: str,
    overrides: Sequence[str],
    gpus: int,
    gpu: str,
    tokens: float | None,
    price: float | None,
    mfu: float | None,
    as_json: bool,
) -> int:
    """The verb: the best layouts of a recipe on these GPUs."""
    recipe = load_recipe(path, PretrainRecipe, overrides)
    _check("--gpus", gpus, math.inf)
    for name, value, largest in (("--tokens", tokens, math.inf), ("--price", price, math.inf), ("--mfu", mfu, 1.0)):
        if value is not None:
            _check(name, value, largest)
    device = find_gpu(gpu)
    forecasts = plan(recipe, gpus, device, MFU if mfu is None else mfu)
    total = tokens if tokens is not None else recipe.steps * recipe.batch.rows * recipe.data.length
    rows = [describe(item, recipe, gpus, total, price) for item in forecasts[:_SHOWN]]
    if as_json:
        print(json.dumps({"gpu": asdict(device), "gpus": gpus, "tokens": total, "layouts": rows}, indent=2))
        return 0
    _print(recipe, rows, f"{gpus:,} {gpu}, {total:.4g} tokens, computing at {100 * (mfu or MFU):.1f} % of the peak")
    print(
        f"usable memory: {USABLE * device.memory / 1e9:.1f} GB a GPU; links at {100 * LINK_SHARE:.0f} % of their rate"
    )
    print(f"the first: chuan pretrain {path} {rows[0]['set']}")
    return 0


def describe(item: Forecast, recipe: PretrainRecipe, gpus: int, tokens: float, price: float | None) -> dict[str, Any]:
    """A forecast with what follows from it: days, GPU hours, cost, and the options that choose it."""
    hours = tokens / item.tokens_per_second / 3600
    return asdict(item) | {
        "total_memory": item.total_memory,
        "step_seconds": sum(item.seconds.values()),
        "tokens_per_day": item.tokens_per_second * 86400,
        "days": hours / 24,
        "gpu_hours": hours * gpus,
        "cost": None if price is None else hours * gpus * price,
        "set": render_overrides(item.layout, recipe),
    }


def render_overrides(layout: Layout, recipe: PretrainRecipe) -> str:
    values = {
        "parallel.tensor": layout.tensor,
        "parallel.replicas": layout.replicas,
        "parallel.checkpointing": str(layout.checkpointing).lower(),
        "batch.micro_rows": layout.micro_rows,
    }
    if layout.tensor > 1 and recipe.parallel.compile:
        values["parallel.compile"] = "false"  # the two do not work together
    return " ".join(f"--set {name}={value}" for name, value in values.items())


def _check(name: str, value: float, largest: float) -> None:
    if not (0 < value <= largest and math.isfinite(value)):
        raise ChuanError(f"{name} must be above 0{' and at most 1' if largest == 1 else ''}, not {value}")


def _print(recipe: PretrainRecipe, rows: Sequence[dict[str, Any]], title: str) -> None:
    print(f"{recipe.model.build_config().parameter_count:,} parameters on {title}")
    table = Table(box=None, pad_edge=False)
    names = (
        "tensor",
        "replicas",
        "shard",
        "checkpointing",
        "micro rows",
        "GB",
        "s a step",
        "MFU",
        "tokens a day",
        "days",
    )
    for name in (*names, "GPU hours", "cost"):
        table.add_column(name, justify="right")
    for row in rows:
        layout = row["layout"]
        cost = "-" if row["cost"] is None else f"{row['cost']:,.0f}"
        table.add_row(
            *(str(layout[name]) for name in ("tensor", "replicas", "shard")),
            "yes" if layout["checkpointing"] else "no",
            str(layout["micro_rows"]),
            f"{row['total_memory'] / 1e9:.1f}",
            f"{row['step_seconds']:.2f}",
            f"{100 * row['mfu']:.1f} %",
            f"{row['tokens_per_day']:.3g}",
            f"{row['days']:.1f}",
            f"{row['gpu_hours']:,.0f}",
            cost,
        )
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=1000)  # piped, a line is never folded
    console.print(table)
    best = rows[0]
    print("memory of the first, GB: " + ", ".join(f"{name} {size / 1e9:.2f}" for name, size in best["memory"].items()))
    print("a step of the first, s: " + ", ".join(f"{name} {value:.2f}" for name, value in best["seconds"].items()))
