"""Learning in a given time: Chuan's recipe beside transformers' Trainer with AdamW at its best of three learning rates.

    python benchmarks/learning.py SHARDS TOKENIZER [--minutes 20] [--seeds 2] [--output build/learning]

The model of recipes/pretrain-mini.toml, the same rows of the same shards, as many steps as each side does in the time:
the two sides' speeds are measured first, in turns, and fix the steps of every run. Each computes in the type that this
processor multiplies faster. The Trainer has the batch and the warmup of ours, cosine to a tenth, weight decay 0.1,
betas 0.9 and 0.95, `torch_compile`, and four rows at a time, which is faster for it than all. Validation is in bits per
byte over the same rows: ours with its documents apart, as it was trained; the Trainer's with whole rows, as it was.
Writes a table, a plot, and the curves as JSON. A run that has ended is kept in the output folder, and the same command
goes on behind it; what else the machine does meanwhile changes no run, as long as the speeds were measured in peace.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from machine import describe_machine
from matplotlib.figure import Figure
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from chuan.corpus.shards import ShardReader
from chuan.recipes import load_recipe
from chuan.staging import staged_file
from chuan.tokenizer.folder import load_tokenizer
from chuan.training.metrics import bits_per_byte, choose_compute_dtype, count_bytes
from chuan.training.pretrain import build_decoder, pretrain
from chuan.training.recipe import PretrainRecipe
from chuan.training.rows import IGNORED, ShardRows
from chuan.training.watch import read_log

RECIPE = Path(__file__).parents[1] / "recipes" / "pretrain-mini.toml"
LEARNING_RATES = (0.0006, 0.0015, 0.004)
POINTS, VALIDATION_ROWS, ROWS_AT_A_TIME = 8, 64, 4
TURNS, TIMED_STEPS = 3, 7

Curve = list[tuple[float, float]]  # (minutes of training, bits per byte)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Given:
    """What all runs have in common."""

    shards: str
    tokenizer: str
    minutes: float
    output: Path
    dtype: str

    def read_recipe(self, name: str, *overrides: str) -> PretrainRecipe:
        settings = [
            f"data.shards={self.shards}",
            f"data.tokenizer={self.tokenizer}",
            f"output={self.output / name}",
            f"dtype={self.dtype}",
            "state.every=100000",
            "watch.log=1",
            f"watch.validation_rows={VALIDATION_ROWS}",
        ]
        return load_recipe(RECIPE, PretrainRecipe, [*settings, *overrides])

    def count_steps(self, seconds: float) -> int:
        return int(60 * self.minutes / seconds)


def time_ours(given: Given, turn: int) -> list[float]:
    """Seconds of steps, without the first ones."""
    recipe = given.read_recipe(f"speed-{turn}", f"steps={TIMED_STEPS}", "watch.validate_every=0")
    shutil.rmtree(recipe.output, ignore_errors=True)  # another try's
    train_ours(recipe)
    tokens = recipe.batch.rows * recipe.data.length
    rates = [entry["tokens_per_second"] for entry in read_log(Path(recipe.output)) if "tokens_per_second" in entry]
    return [tokens / rate for rate in rates[2:]]


def train_ours(recipe: PretrainRecipe) -> None:
    if pretrain(recipe) is None:
        raise SystemExit("stopped; the same command goes on from here")


def run_ours(given: Given, seconds: float, seed: int) -> Curve:
    """Trains for the time's steps; the minutes are those that they take at the measured speed."""
    steps = given.count_steps(seconds)
    every = max(1, steps // POINTS)
    recipe = given.read_recipe(
        f"ours-{seed}", f"steps={steps}", f"seed={seed}", f"watch.validate_every={every}",
        f"schedule.warmup={max(1, steps // 20)}",
    )  # fmt: skip
    train_ours(recipe)
    return [
        (entry["step"] * seconds / 60, entry["validation_bits_per_byte"])
        for entry in read_log(Path(recipe.output))
        if "validation_bits_per_byte" in entry
    ]


class TokenRows(Dataset):
    """The rows of our loop, in its order, each as one document."""

    def __init__(self, rows: ShardRows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return 1 << 40  # its order is a function of the number, over any number of passes

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        row = self.rows.row(number)
        # The model shifts by itself, so the last position has no target here.
        return {"input_ids": row.tokens.astype(np.int64), "labels": row.tokens.astype(np.int64)}


class Watch(TrainerCallback):
    """Times the steps, and validates now and then."""

    def __init__(self, every: int, validation: ShardRows, sizes: np.ndarray) -> None:
        self.every, self.validation, self.sizes = every, validation, sizes
        self.before = time.perf_counter()
        self.times: list[float] = []
        self.points: Curve = []  # (steps, bits per byte)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        now = time.perf_counter()
        self.times.append(now - self.before)
        self.before = now
        if self.every and (state.global_step % self.every == 0 or state.global_step == state.max_steps):
            self.points.append((state.global_step, measure(model, self.validation, self.sizes)))


@torch.no_grad()
def measure(model: LlamaForCausalLM, rows: ShardRows, sizes: np.ndarray) -> float:
    """Bits per byte of whole rows; targets that begin a document count for neither side."""
    total, size = 0.0, 0
    for first in range(0, min(VALIDATION_ROWS, len(rows)), ROWS_AT_A_TIME):
        batch = [rows.row(number) for number in range(first, min(first + ROWS_AT_A_TIME, len(rows)))]
        tokens = torch.from_numpy(np.stack([row.tokens for row in batch])).long()
        targets = torch.from_numpy(np.stack([row.targets for row in batch])).long()
        logits = model(input_ids=tokens).logits.float()
        total += float(F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"))
        size += int(sizes[targets[targets != IGNORED].numpy()].sum())
    return bits_per_byte(total, size)


def train_theirs(given: Given, learning_rate: float, seed: int, steps: int, every: int) -> Watch:
    recipe = given.read_recipe("theirs", f"seed={seed}")
    length = recipe.data.length
    rows = ShardRows(ShardReader(recipe.data.shards), length, seed)
    validation = ShardRows(ShardReader(recipe.data.shards, "validation"), length, recipe.seed)
    config = LlamaConfig(**recipe.model.build_config().to_dict(), use_cache=False)
    model = LlamaForCausalLM(config)
    torch.manual_seed(seed)
    model.load_state_dict(build_decoder(recipe.model.build_config()).state_dict())  # the start of ours
    watch = Watch(every, validation, count_bytes(load_tokenizer(recipe.data.tokenizer)))
    options = TrainingArguments(
        output_dir=str(given.output / "theirs"),
        max_steps=steps,
        per_device_train_batch_size=ROWS_AT_A_TIME,
        gradient_accumulation_steps=recipe.batch.rows // ROWS_AT_A_TIME,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=max(1, steps // 20),
        weight_decay=0.1,
        adam_beta1=0.9,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        bf16=given.dtype == "bfloat16",
        torch_compile=True,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        logging_strategy="no",
        disable_tqdm=True,
        seed=seed,
    )
    InOrder(model=model, args=options, train_dataset=TokenRows(rows), callbacks=[watch]).train()
    return watch


def run_theirs(given: Given, seconds: float, learning_rate: float, seed: int) -> Curve:
    steps = given.count_steps(seconds)
    watch = train_theirs(given, learning_rate, seed, steps, max(1, steps // POINTS))
    return [(step * seconds / 60, value) for step, value in watch.points]


class InOrder(Trainer):
    """The Trainer without its own shuffle: the rows come shuffled, and in the order of ours."""

    def _get_train_sampler(self, *unused: Any) -> Any:
        return range(1 << 40)


def render_plot(curves: dict[str, list[Curve]], path: Path) -> None:
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="minutes of training", ylabel="validation, bits per byte")
    for number, (name, runs) in enumerate(curves.items()):
        for curve in runs:
            axes.plot(
                *zip(*curve, strict=True), color=f"C{number}", marker=".", label=name if curve is runs[0] else None
            )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def keep(path: Path, compute: Callable[[], Any]) -> Any:
    """What `compute` gives, or gave when this was last run to here."""
    if not path.exists():
        value = compute()
        with staged_file(path) as partial_path:
            partial_path.write_text(json.dumps(value))
    return json.loads(path.read_text())


def time_sides(given: Given) -> dict[str, float]:
    """The median seconds of a step, the sides taking turns."""
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(TURNS):
        times["ours"] += time_ours(given, turn)
        times["theirs"] += train_theirs(given, LEARNING_RATES[0], 0, TIMED_STEPS, 0).times[2:]
    return {side: statistics.median(seconds) for side, seconds in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards")
    parser.add_argument("tokenizer")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("build/learning"))
    arguments = parser.parse_args()
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    asked = {"shards": arguments.shards, "tokenizer": arguments.tokenizer, "minutes": arguments.minutes}
    dtype = str(choose_compute_dtype("auto", CPU)).removeprefix("torch.")
    setup = keep(output / "setup.json", lambda: {**asked, "dtype": dtype, "machine": describe_machine()})
    if any(setup[name] != value for name, value in asked.items()):
        parser.error(f"{output} holds runs of another setup; name another --output")
    given = Given(**asked, output=output, dtype=setup["dtype"])
    seconds = keep(output / "seconds.json", lambda: time_sides(given))

    def run(learning_rate: float, seed: int) -> Curve:
        path = output / f"theirs-{learning_rate}-{seed}.json"
        return keep(path, lambda: run_theirs(given, seconds["theirs"], learning_rate, seed))

    curves: dict[str, list[Curve]] = {
        "Chuan": [
            keep(output / f"ours-{seed}.json", partial(run_ours, given, seconds["ours"], seed))
            for seed in range(arguments.seeds)
        ]
    }
    for learning_rate in LEARNING_RATES:
        curves[f"Trainer, AdamW {learning_rate}"] = [run(learning_rate, 0)]
    best = min(list(curves)[1:], key=lambda name: curves[name][0][-1][1])
    for seed in range(1, arguments.seeds):
        curves[best].append(run(float(best.rpartition(" ")[2]), seed))
    render_plot(curves, output / "learning.png")
    print(setup["machine"], f"\n{setup['dtype']}, {arguments.minutes:g} minutes a run\n")
    print("| side | seconds a step | steps | validation, bits per byte, at the end of each run | mean |")
    print("|---|---|---|---|---|")
    for name, runs in curves.items():
        each = seconds["ours" if name == "Chuan" else "theirs"]
        ends = [curve[-1][1] for curve in runs]
        shown = "diverged" if not all(map(math.isfinite, ends)) else f"{statistics.mean(ends):.4f}"
        values = ", ".join(f"{end:.4f}" for end in ends)
        print(f"| {name} | {each:.2f} | {given.count_steps(each)} | {values} | {shown} |")


if __name__ == "__main__":
    main()
