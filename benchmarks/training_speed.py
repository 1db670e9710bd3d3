"""Tokens a second of training: Chuan's step beside transformers' Llama and litgpt's in a plain loop.

    python benchmarks/training_speed.py [--rounds 7] [--dtype float32] [--litgpt]

The model of recipes/pretrain-mini.toml (26.7 M parameters), 16 rows of 512 tokens a step, random ids, AdamW, one
process, everything in the type that this processor multiplies fastest. The sides take turns, a step each; medians. Each
row is one document, but for a side more of ours whose rows are three that do not see each other. The others take the 16
rows at once and four at a time, as ours does: the faster of the two counts. `--litgpt` wants `pip install litgpt`.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from machine import describe_machine
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from chuan.recipes import load_recipe
from chuan.training.loss import LanguageModelLoss, LossSettings
from chuan.training.metrics import choose_compute_dtype, count_operations, measure_products
from chuan.training.optimizer import build_optimizers, clip_gradients
from chuan.training.parallel import ParallelSettings, Ranks, apply_parallel, join_ranks, prepare_part
from chuan.training.pretrain import build_decoder
from chuan.training.recipe import PretrainRecipe

RECIPE = Path(__file__).parents[1] / "recipes" / "pretrain-mini.toml"
CPU = torch.device("cpu")


def build_ours(
    recipe: PretrainRecipe, ranks: Ranks, dtype: torch.dtype, compiled: bool, document: int
) -> Callable[[], None]:
    """A step of the loop, without its log."""
    model = LanguageModelLoss(build_decoder(recipe.model.build_config()), LossSettings())
    apply_parallel(model, ranks, ParallelSettings(compile=compiled), dtype)
    optimizers = build_optimizers(model.named_parameters(), recipe.optimizer, dtype)
    rows, length = recipe.batch.rows, recipe.data.length
    tokens = torch.randint(0, recipe.model.vocab_size, (rows, length + 1))
    documents = (torch.arange(length) // document).expand(rows, length)

    def step() -> None:
        parts = torch.arange(rows).split(recipe.batch.micro_rows)
        for index, part in enumerate(parts):
            prepare_part(model, ranks, last=index + 1 == len(parts))
            total, _ = model(tokens[part, :-1], documents[part], tokens[part, 1:])
            (total / (rows * length)).backward()
        clip_gradients(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step


def build_theirs(recipe: PretrainRecipe, dtype: torch.dtype, compiled: bool, rows: int) -> Callable[[], None]:
    """transformers' model, under autocast where its Trainer would have bf16=True."""
    config = LlamaConfig(**recipe.model.build_config().to_dict(), use_cache=False)
    model = LlamaForCausalLM(config).train()
    run = torch.compile(model) if compiled else model
    return build_plain_loop(recipe, dtype, model, lambda tokens: run(tokens, labels=tokens).loss, rows)


def build_litgpt(recipe: PretrainRecipe, dtype: torch.dtype, rows: int) -> Callable[[], None]:
    """litgpt's model, compiled, with its own loss over chunks, as its pretraining script has them."""
    litgpt = importlib.import_module("litgpt")
    chunked_cross_entropy = importlib.import_module("litgpt.utils").chunked_cross_entropy
    shape = recipe.model.build_config()
    config = litgpt.Config(
        block_size=recipe.data.length,
        vocab_size=shape.vocab_size,
        padded_vocab_size=shape.vocab_size,
        n_layer=shape.num_hidden_layers,
        n_head=shape.num_attention_heads,
        n_embd=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        norm_eps=shape.rms_norm_eps,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )
    model = litgpt.GPT(config)
    run = torch.compile(model)
    return build_plain_loop(
        recipe, dtype, model, lambda tokens: chunked_cross_entropy(run(tokens)[:, :-1], tokens[:, 1:]), rows
    )


def build_plain_loop(
    recipe: PretrainRecipe, dtype: torch.dtype, model: nn.Module, loss: Callable[[Tensor], Tensor], rows: int
) -> Callable[[], None]:
    """A step as people write it, `rows` at a time."""
    optimizer = torch.optim.AdamW(model.parameters(), recipe.optimizer.learning_rate, fused=True)
    tokens = torch.randint(0, recipe.model.vocab_size, (recipe.batch.rows, recipe.data.length))

    def step() -> None:
        for part in tokens.split(rows):
            with torch.autocast("cpu", dtype) if dtype != torch.float32 else nullcontext():
                value = loss(part)
            (value * len(part) / len(tokens)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--litgpt", action="store_true")
    arguments = parser.parse_args()
    recipe = load_recipe(RECIPE, PretrainRecipe, ['optimizer.kind="adamw"'])
    dtype = choose_compute_dtype(arguments.dtype, CPU)
    torch.manual_seed(0)
    with join_ranks(ParallelSettings(), "cpu") as ranks:
        sides = {
            "Chuan, compiled": build_ours(recipe, ranks, dtype, compiled=True, document=recipe.data.length),
            "Chuan, compiled, documents apart": build_ours(recipe, ranks, dtype, compiled=True, document=200),
            "Chuan, eager": build_ours(recipe, ranks, dtype, compiled=False, document=recipe.data.length),
        }
        for rows in (recipe.batch.rows, recipe.batch.micro_rows):
            at = f"{rows} rows at a time"
            sides[f"transformers, compiled, {at}"] = build_theirs(recipe, dtype, compiled=True, rows=rows)
            sides[f"transformers, eager, {at}"] = build_theirs(recipe, dtype, compiled=False, rows=rows)
            if arguments.litgpt:
                sides[f"litgpt, compiled, {at}"] = build_litgpt(recipe, dtype, rows)
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
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    peers = [f"transformers, {kind}" for kind in ("eager", "compiled")] + ["litgpt"] * arguments.litgpt
    best = {peer: min(value for name, value in middle.items() if name.startswith(peer)) for peer in peers}
    print("| side | tokens/s (least to most) | share of the matrix rate |" + "".join(f" x {peer} |" for peer in peers))
    print("|---|---|---|" + "---|" * len(peers))
    for name, times in seconds.items():
        rate = tokens / middle[name]
        spread = f"{tokens / max(times):,.0f} to {tokens / min(times):,.0f}"
        ratios = "".join(f" {best[peer] / middle[name]:.2f} |" for peer in peers)
        print(f"| {name} | {rate:,.0f} ({spread}) | {rate * operations / peak:.0%} |{ratios}")


if __name__ == "__main__":
    main()
