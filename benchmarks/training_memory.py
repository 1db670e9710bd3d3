"""Memory of training against the length and number of rows, and what checkpointing saves; beside `chuan plan`'s count.

    python benchmarks/training_memory.py [--output docs/training_memory.png]

The model of recipes/pretrain-mini.toml in float32, AdamW, eager, one process a point: the highest resident memory of
two steps, less what the process held before there was a model (Linux). The forecast is that of `chuan.training.plan`.
glibc gives freed blocks back at once here (MALLOC_MMAP_THRESHOLD_); by default it keeps many for later.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from machine import describe_machine, read_memory
from matplotlib.figure import Figure

from chuan.recipes import load_recipe
from chuan.training.loss import CPU_LOGITS, LanguageModelLoss, LossSettings
from chuan.training.optimizer import build_optimizers
from chuan.training.parallel import ParallelSettings, apply_parallel, join_ranks
from chuan.training.plan import Layout, estimate_memory
from chuan.training.pretrain import build_decoder
from chuan.training.recipe import PretrainRecipe

RECIPE = Path(__file__).parents[1] / "recipes" / "pretrain-mini.toml"
LENGTHS, ROWS = (256, 512, 1024, 2048), (1, 2, 4, 8)
MOST = 8192  # tokens at a time


def read_recipe(length: int) -> PretrainRecipe:
    settings = [f"data.length={length}", f"model.max_position_embeddings={length}", "parallel.compile=false"]
    return load_recipe(RECIPE, PretrainRecipe, ['optimizer.kind="adamw"', *settings])


def measure(length: int, rows: int, checkpointing: bool) -> int:
    """Bytes, in this process."""
    recipe = read_recipe(length)
    before = _resident()
    with join_ranks(ParallelSettings(), "cpu") as ranks:
        model = LanguageModelLoss(build_decoder(recipe.model.build_config()), LossSettings())
        apply_parallel(model, ranks, ParallelSettings(checkpointing=checkpointing), torch.float32)
        optimizers = build_optimizers(model.named_parameters(), recipe.optimizer, torch.float32)
        tokens = torch.randint(0, recipe.model.vocab_size, (rows, length + 1))
        for _ in range(2):
            total, _ = model(tokens[:, :-1], torch.zeros_like(tokens[:, :-1]), tokens[:, 1:])
            total.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    return read_memory(os.getpid())[1] - before


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def forecast(length: int, rows: int, checkpointing: bool) -> float:
    layout = Layout(tensor=1, replicas=1, shard=1, checkpointing=checkpointing, micro_rows=rows)
    parts = estimate_memory(read_recipe(length), layout, size=4, logits=CPU_LOGITS)
    # Alone, nothing is sharded: there is no whole copy beside the weights.
    return sum(parts.values()) - parts["embedding and head, whole"]


def render_plot(points: list[tuple[int, int, bool, int, float]], path: Path) -> None:
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="tokens at a time", ylabel="GB", xscale="log", yscale="log")
    for checkpointing, color, name in ((False, "C0", "kept"), (True, "C1", "checkpointed")):
        for length, marker in zip(LENGTHS, "osd^", strict=True):
            chosen = [point for point in points if point[0] == length and point[2] == checkpointing]
            x = [length * rows for _, rows, _, _, _ in chosen]
            axes.plot(x, [point[3] / 1e9 for point in chosen], marker, color=color, label=f"{name}, rows of {length}")
            axes.plot(x, [point[4] / 1e9 for point in chosen], color=color, alpha=0.4)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.suptitle("Peak memory of a step; lines: the forecast of chuan plan")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/training_memory.png"))
    parser.add_argument("--point", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point:
        print(measure(*json.loads(arguments.point)))
        return
    points = []
    for length in LENGTHS:
        for rows in ROWS:
            if length * rows > MOST:
                continue
            for checkpointing in (False, True):
                command = [sys.executable, __file__, "--point", json.dumps([length, rows, checkpointing])]
                environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
                done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
                found = int(done.stdout)
                points.append((length, rows, checkpointing, found, forecast(length, rows, checkpointing)))
    print(describe_machine(), "\n")
    print("| rows x length | GB | forecast | checkpointed, GB | forecast | saved |\n|---|---|---|---|---|---|")
    for kept, less in zip(points[::2], points[1::2], strict=True):
        figures = " | ".join(f"{value / 1e9:.2f}" for value in (kept[3], kept[4], less[3], less[4]))
        print(f"| {kept[1]} x {kept[0]:,} | {figures} | {1 - less[3] / kept[3]:.0%} |")
    render_plot(points, arguments.output)


if __name__ == "__main__":
    main()
