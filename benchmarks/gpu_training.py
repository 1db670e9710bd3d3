"""A step of training at the width of a 7B on one GPU: rate, MFU, memory; beside what `chuan plan` forecasts.

    python benchmarks/gpu_training.py --layers 22 --rows 16 --micro-rows 4
    python benchmarks/gpu_training.py --layers 32 --rows 16 --micro-rows 8 --checkpointing

The shape of recipes/pretrain-baichuan-7b.toml with fewer layers where asked for, random ids, and the step that
`chuan pretrain` takes (`Trainer.update`), between two waits for the GPU. Two steps go before, for compiling. MFU is of
the data sheet's peak, its operations those of `count_operations`: 6 for each weight but the input embedding's, and
causal attention; nothing that is computed again counts. `--documents` puts so many into each row. With `--device cpu
--tiny` everything is run at a small size, to see that it does.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chuan.recipes import load_recipe
from chuan.training.gpus import GPUS, Gpu
from chuan.training.loop import Task, Trainer, build_trainer
from chuan.training.loss import LanguageModelLoss
from chuan.training.metrics import choose_compute_dtype, count_operations, measure_products
from chuan.training.parallel import Ranks, join_ranks
from chuan.training.plan import Forecast, Layout, forecast
from chuan.training.pretrain import build_decoder
from chuan.training.recipe import PretrainRecipe
from chuan.training.rows import IGNORED, Row

RECIPE = Path(__file__).parents[1] / "recipes" / "pretrain-baichuan-7b.toml"
TINY = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 4}
WARMUP = 2  # steps
# The share of the peak while it computes that the forecast takes (docs/training.md says why).
MFU = 0.55


@dataclass(frozen=True)
class RandomRows:
    """Rows of random ids, each of several documents of one length."""

    length: int
    vocabulary: int
    documents: int

    def __len__(self) -> int:
        return 1 << 30

    def row(self, number: int) -> Row:
        ids = np.random.default_rng(number).integers(0, self.vocabulary, self.length + 1, np.int32)
        documents = (np.arange(self.length + 1) * self.documents // self.length).astype(np.int32)
        targets = np.where(documents[1:] == documents[:-1], ids[1:], IGNORED).astype(np.int32)
        return Row(ids[:-1], targets, documents[:-1])


def read_recipe(arguments: argparse.Namespace, output: str) -> PretrainRecipe:
    settings: dict[str, Any] = {
        "output": output,
        "device": arguments.device,
        "dtype": arguments.dtype,
        "model.num_hidden_layers": arguments.layers,
        "batch.rows": arguments.rows,
        "batch.micro_rows": arguments.micro_rows,
        "parallel.replicas": 1,
        "parallel.checkpointing": str(arguments.checkpointing).lower(),
        "parallel.compile": str(not arguments.no_compile).lower(),
    }
    if arguments.tiny:
        settings |= {f"model.{name}": value for name, value in TINY.items()}
        settings |= {"data.length": 256}
    return load_recipe(RECIPE, PretrainRecipe, [f"{name}={value}" for name, value in settings.items()])


def begin(recipe: PretrainRecipe, ranks: Ranks, documents: int) -> Trainer:
    """As `pretrain` does it, but for the data."""
    config = recipe.model.build_config()
    dtype = choose_compute_dtype(recipe.dtype, ranks.device)
    task = Task(
        rows=RandomRows(recipe.data.length, config.vocab_size, documents),
        validation=None,
        sizes=np.zeros(0),
        prompts=[],
        render=str,
        operations=count_operations(config, recipe.data.length),
        peak=measure_products(dtype, ranks.device),
    )
    torch.manual_seed(recipe.seed)
    with ranks.device:
        model = LanguageModelLoss(build_decoder(config), recipe.loss)
    return build_trainer(model, recipe, ranks, task, dtype)


def wait(device: torch.device) -> float:
    """The time when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(recipe: PretrainRecipe, steps: int, documents: int) -> dict[str, Any]:
    """Seconds of each step after those for compiling, the highest memory in them, and the losses of all."""
    start = time.perf_counter()
    with join_ranks(recipe.parallel, recipe.device) as ranks:
        trainer = begin(recipe, ranks, documents)
        device = ranks.device
        print(f"built in {wait(device) - start:.1f} s; products at {trainer.task.peak / 1e12:.1f} TFLOP/s", flush=True)
        seconds, losses = [], []
        for number in range(WARMUP + steps):
            if device.type == "cuda" and number == WARMUP:
                torch.cuda.reset_peak_memory_stats()
            began = wait(device)
            loss, norm, _ = trainer.update(number)
            seconds.append(wait(device) - began)
            losses.append(loss)
            print(f"step {number}: {seconds[-1]:.3f} s, loss {loss:.4f}, norm {norm:.3f}", flush=True)
        on_gpu = device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name() if on_gpu else "CPU",
            "torch": torch.__version__,
            "products": trainer.task.peak,
            "seconds": seconds[WARMUP:],
            "losses": losses,
            "memory": torch.cuda.max_memory_allocated() if on_gpu else 0,
            "reserved": torch.cuda.max_memory_reserved() if on_gpu else 0,
        }


def find_type(name: str) -> Gpu | None:
    """The GPU's data sheet: "NVIDIA H200" -> that of h200; none for cards of a slower form."""
    words = name.lower().replace("-", " ").split()
    known = (gpu for known, gpu in GPUS.items() if known.split("-")[0] in words)
    return None if "pcie" in words else next(known, None)


def report(found: dict[str, Any], recipe: PretrainRecipe, gpu: Gpu | None, mfu: float) -> None:
    """The table, then everything as one line of JSON."""
    config, length = recipe.model.build_config(), recipe.data.length
    layout = Layout(1, 1, 1, recipe.parallel.checkpointing, recipe.batch.micro_rows)
    expected: Forecast | None = None if gpu is None else forecast(recipe, layout, gpu, mfu)
    step = statistics.median(found["seconds"])
    rate = recipe.batch.rows * length / step
    operations = rate * count_operations(config, length)
    peak = found["products"] if gpu is None else gpu.peak
    found |= {"step": step, "tokens_per_second": rate, "mfu": operations / peak}
    found |= {"recipe": recipe.model_dump(include={"dtype", "model", "batch", "parallel"})}
    print(
        f"\n{found['device']}, torch {found['torch']}: {config.parameter_count:,} parameters, {recipe.batch.rows} rows "
        f"of {length:,}, {recipe.batch.micro_rows} at a time\n"
    )
    print("| | measured | forecast | measured / forecast |\n|---|---|---|---|")
    rows: list[tuple[str, float, float]] = [
        ("s a step", step, math.nan if expected is None else sum(expected.seconds.values())),
        ("tokens a second", rate, math.nan if expected is None else expected.tokens_per_second),
        ("MFU, %", 100 * found["mfu"], math.nan if expected is None else 100 * expected.mfu),
        ("memory, GB", found["memory"] / 1e9, math.nan if expected is None else expected.total_memory / 1e9),
    ]
    for name, measured, forecasted in rows:
        print(f"| {name} | {measured:,.2f} | {forecasted:,.2f} | {measured / forecasted:.3f} |")
    if expected is not None:
        found |= {"forecast": {"memory": expected.memory, "seconds": expected.seconds, "mfu": expected.mfu}}
        parts = ", ".join(f"{name} {value / 1e9:.2f}" for name, value in expected.memory.items())
        print(f"\nforecast of memory, GB: {parts}")
        print("forecast of a step, s: " + ", ".join(f"{name} {value:.2f}" for name, value in expected.seconds.items()))
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--micro-rows", type=int, default=4)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--dtype", choices=("bfloat16", "float8"), default="bfloat16")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--documents", type=int, default=1)
    parser.add_argument("--mfu", type=float, default=MFU)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as output:
        recipe = read_recipe(arguments, output)
        found = measure(recipe, arguments.steps, arguments.documents)
    report(found, recipe, find_type(found["device"]), arguments.mfu)


if __name__ == "__main__":
    main()
