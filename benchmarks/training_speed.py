"""Tokens a second of training: Chuan's loop beside transformers' Llama with a plain loop, eager and compiled.

    python benchmarks/training_speed.py [--rounds 7] [--dtype float32]

The model of recipes/pretrain-mini.toml (26.7 M parameters), 16 rows of 512 tokens a step, random ids, AdamW, one
process, everything in the type that this processor multiplies fastest. The sides take turns, a step each; medians. Ours
isolates the documents of a row (three in each); transformers' sees a row as one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from machine import describe_machine
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from chuan.recipes import load_recipe
from chuan.training.loss import LanguageModelLoss, LossSettings
from chuan.training.metrics import choose_compute_dtype, count_operations, measure_products
from chuan.training.optimizer import build_optimizers, clip_gradients
from chuan.training.parallel import ParallelSettings, Ranks, apply_parallel, join_ranks
from chuan.training.pretrain import build_decoder
from chuan.training.recipe import PretrainRecipe

RECIPE = Path(__file__).parents[1] / "recipes" / "pretrain-mini.toml"
CPU = torch.device("cpu")


def build_ours(recipe: PretrainRecipe, ranks: Ranks, dtype: torch.dtype, compiled: bool) -> Callable[[], None]:
    """A step of the loop, without its log."""
    model = LanguageModelLoss(build_decoder(recipe.model.build_config()), LossSettings())
    apply_parallel(model, ranks, ParallelSettings(compile=compiled), dtype)
    optimizers = build_optimizers(model.named_parameters(), recipe.optimizer)
    rows, length = recipe.batch.rows, recipe.data.length
    tokens = torch.randint(0, recipe.model.vocab_size, (rows, length + 1))
    documents = (torch.arange(length) // 200).expand(rows, length)

    def step() -> None:
        for part in torch.arange(rows).split(recipe.batch.micro_rows):
            total, _ = model(tokens[part, :-1], documents[part], tokens[part, 1:])
            (total / (rows * length)).backward()
        clip_gradients(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step


def build_theirs(recipe: PretrainRecipe, dtype: torch.dtype, compiled: bool) -> Callable[[], None]:
    """transformers' model under autocast, as its Trainer does with bf16=True."""
    config = LlamaConfig(**recipe.model.build_config().to_dict(), use_cache=False)
    model: nn.Module = LlamaForCausalLM(config).train()
    run = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), recipe.optimizer.learning_rate, fused=True)
    tokens = torch.randint(0, recipe.model.vocab_size, (recipe.batch.rows, recipe.data.length))

    def step() -> None:
        with torch.autocast("cpu", dtype) if dtype != torch.float32 else nullcontext():
            loss = run(tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", default="auto")
    arguments = parser.parse_args()
    recipe = load_recipe(RECIPE, PretrainRecipe, ['optimizer.kind="adamw"'])
    dtype = choose_compute_dtype(arguments.dtype, CPU)
    torch.manual_seed(0)
    with join_ranks(ParallelSettings(), "cpu") as ranks:
        sides = {
            "Chuan, compiled": build_ours(recipe, ranks, dtype, compiled=True),
            "Chuan, eager": build_ours(recipe, ranks, dtype, compiled=False),
            "transformers, compiled": build_theirs(recipe, dtype, compiled=True),
            "transformers, eager": build_theirs(recipe, dtype, compiled=False),
        }
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for step in sides.values():  # compiles
            step()
        for _ in range(arguments.rounds):
            for name, step in sides.items():
                start = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - start)
    print(describe_machine(), "\n")
    peak = measure_products(dtype, CPU, 2048)
    operations = count_operations(recipe.model.build_config(), recipe.data.length)
    tokens = recipe.batch.rows * recipe.data.length
    name = str(dtype).removeprefix("torch.")
    print(f"{name}; matrix products {peak / 1e9:.0f} GFLOP/s; {arguments.rounds} rounds\n")
    print(
        "| side | tokens/s (least to most) | share of the matrix rate | against eager transformers | against compiled |"
    )
    print("|---|---|---|---|---|")
    eager, compiled = (statistics.median(seconds[f"transformers, {kind}"]) for kind in ("eager", "compiled"))
    for name, times in seconds.items():
        middle = statistics.median(times)
        rate = tokens / middle
        spread = f"{tokens / max(times):,.0f} to {tokens / min(times):,.0f}"
        share = rate * operations / peak
        print(f"| {name} | {rate:,.0f} ({spread}) | {share:.0%} | {eager / middle:.2f} | {compiled / middle:.2f} |")


if __name__ == "__main__":
    main()
