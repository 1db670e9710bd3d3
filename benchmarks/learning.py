"""Learning in a given time: Chuan's recipe beside transformers' Trainer with AdamW at its best of three learning rates.

    python benchmarks/learning.py SHARDS TOKENIZER [--minutes 20] [--seeds 2] [--output build/learning]

The model of recipes/pretrain-mini.toml, the same rows of the same shards, as many steps as each side does in the time
on this machine (its own speed, measured first). The Trainer has the batch and the warmup of ours, cosine to a tenth,
weight decay 0.1, betas 0.9 and 0.95, `torch_compile`, and four rows at a time, which is faster for it than all.
Validation is in bits per byte over the same rows: ours with its documents apart, as it was trained; the Trainer's with
whole rows, as it was.
Writes a table, a plot, and the curves as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
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
from chuan.tokenizer.folder import load_tokenizer
from chuan.training.metrics import bits_per_byte, count_bytes
from chuan.training.pretrain import build_decoder, pretrain
from chuan.training.recipe import PretrainRecipe
from chuan.training.rows import IGNORED, ShardRows
from chuan.training.watch import read_log

RECIPE = Path(__file__).parents[1] / "recipes" / "pretrain-mini.toml"
LEARNING_RATES = (0.0006, 0.0015, 0.004)
POINTS, VALIDATION_ROWS, ROWS_AT_A_TIME = 8, 64, 4

Curve = list[tuple[float, float]]  # (minutes of training, bits per byte)


def read_recipe(arguments: argparse.Namespace, name: str, *overrides: str) -> PretrainRecipe:
    settings = [
        f"data.shards={arguments.shards}",
        f"data.tokenizer={arguments.tokenizer}",
        f"output={arguments.output / name}",
        "state.every=100000",
        "watch.log=1",
        f"watch.validation_rows={VALIDATION_ROWS}",
    ]
    return load_recipe(RECIPE, PretrainRecipe, [*settings, *overrides])


def run_ours(arguments: argparse.Namespace, seed: int) -> Curve:
    """Measures the speed over a few steps, then trains."""
    warm = read_recipe(arguments, f"ours-speed-{seed}", "steps=6", "watch.validate_every=0")
    pretrain(warm)
    tokens = warm.batch.rows * warm.data.length
    rates = [entry["tokens_per_second"] for entry in read_log(Path(warm.output)) if "tokens_per_second" in entry]
    seconds = tokens / statistics.median(rates[2:])
    steps = int(60 * arguments.minutes / seconds)
    every = max(1, steps // POINTS)
    recipe = read_recipe(
        arguments, f"ours-{seed}", f"steps={steps}", f"seed={seed}", f"watch.validate_every={every}",
        f"schedule.warmup={max(1, steps // 20)}",
    )  # fmt: skip
    pretrain(recipe)
    log = read_log(Path(recipe.output))
    spent, curve = 0.0, []
    for entry in log:
        if "tokens_per_second" in entry:
            spent += tokens / entry["tokens_per_second"]
        if "validation_bits_per_byte" in entry:
            curve.append((spent / 60, entry["validation_bits_per_byte"]))
    return curve


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
    """Validates now and then, and keeps the time that training alone took."""

    def __init__(self, every: int, validation: ShardRows, sizes: np.ndarray) -> None:
        self.every, self.validation, self.sizes = every, validation, sizes
        self.began = self.spent = 0.0
        self.times: list[float] = []
        self.curve: Curve = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        self.times.append(time.perf_counter() - self.began)
        self.spent += self.times[-1]
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.curve.append((self.spent / 60, measure(model, self.validation, self.sizes)))


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


def run_theirs(arguments: argparse.Namespace, learning_rate: float, seed: int) -> Curve:
    recipe = read_recipe(arguments, "theirs")
    length = recipe.data.length
    rows = ShardRows(ShardReader(recipe.data.shards), length, seed)
    validation = ShardRows(ShardReader(recipe.data.shards, "validation"), length, recipe.seed)
    sizes = count_bytes(load_tokenizer(recipe.data.tokenizer))
    config = LlamaConfig(**recipe.model.build_config().to_dict(), use_cache=False)

    def train(steps: int, every: int) -> Watch:
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        model.load_state_dict(build_decoder(recipe.model.build_config()).state_dict())  # the start of ours
        watch = Watch(every, validation, sizes)
        options = TrainingArguments(
            output_dir=str(arguments.output / "theirs"),
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
            torch_compile=True,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            logging_strategy="no",
            disable_tqdm=True,
            seed=seed,
        )
        trainer = InOrder(model=model, args=options, train_dataset=TokenRows(rows), callbacks=[watch])
        trainer.train()
        return watch

    seconds = statistics.median(train(6, 1000).times[2:])
    steps = int(60 * arguments.minutes / seconds)
    return train(steps, max(1, steps // POINTS)).curve


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards")
    parser.add_argument("tokenizer")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("build/learning"))
    arguments = parser.parse_args()
    curves: dict[str, list[Curve]] = {"Chuan": [run_ours(arguments, seed) for seed in range(arguments.seeds)]}
    for learning_rate in LEARNING_RATES:
        curves[f"Trainer, AdamW {learning_rate}"] = [run_theirs(arguments, learning_rate, 0)]
    best = min(list(curves)[1:], key=lambda name: curves[name][0][-1][1])
    for seed in range(1, arguments.seeds):
        curves[best].append(run_theirs(arguments, float(best.rpartition(" ")[2]), seed))
    (arguments.output / "curves.json").write_text(json.dumps(curves))
    render_plot(curves, arguments.output / "learning.png")
    print(describe_machine(), f"\n{arguments.minutes:g} minutes a run\n")
    print("| side | validation, bits per byte, at the end of each run | mean |\n|---|---|---|")
    for name, runs in curves.items():
        ends = [curve[-1][1] for curve in runs]
        shown = "diverged" if not all(map(math.isfinite, ends)) else f"{statistics.mean(ends):.4f}"
        print(f"| {name} | {', '.join(f'{end:.4f}' for end in ends)} | {shown} |")


if __name__ == "__main__":
    main()
