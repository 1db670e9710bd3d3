"""A found mixture against natural proportions: larger proxies, the same tokens, several seeds; held-out bits per byte.

    chuan corpus mix recipes/mixture-mini.toml --set shards=SHARDS --set tokenizer=TOKENIZER --set output=FOLDER
    python benchmarks/corpus_mixture.py FOLDER [--seeds 3] [--steps 200]

FOLDER is a finished search. It is judged by the half of the validation documents that the search did not look at.
Both mixtures of a seed start from the same weights and see each group's text in the same order.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from machine import describe_machine

from chuan.corpus.shards import ShardReader
from chuan.json_file import read_json
from chuan.recipes import load_recipe
from chuan.tokenizer.folder import load_tokenizer
from chuan.training.mixture import MixtureRecipe, assign_groups
from chuan.training.proxy import ProxySettings, measure, read_pool, train_proxy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `chuan corpus mix` left")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args()
    print(describe_machine(), "\n")
    recipe = load_recipe(given.folder / "recipe.toml", MixtureRecipe)
    rows = read_json(given.folder / "report.json")["groups"]
    settings = ProxySettings(
        vocabulary=8192,
        width=128,
        layers=4,
        context=256,
        rows=16,
        steps=given.steps,
        learning_rate=3e-3,
        held_out=60000,
    )
    reader, validation = ShardReader(recipe.shards), ShardReader(recipe.shards, "validation")
    groups = assign_groups(recipe.groups, reader.manifest)
    pool = read_pool(reader, validation, load_tokenizer(recipe.tokenizer), groups, settings, half=1)
    tokens = settings.rows * settings.context * settings.steps
    print(f"width {settings.width}, {settings.layers} layers, {tokens:,} tokens a run\n")
    print("| seed | mixture | target | " + " | ".join(rows) + " | seconds |\n|---|---|---|" + "---|" * (len(rows) + 1))
    targets: dict[str, list[float]] = {"natural": [], "found": []}
    for seed in range(1, given.seeds + 1):
        for kind, found in targets.items():
            began = time.perf_counter()
            model = train_proxy(pool, {name: row[kind] for name, row in rows.items()}, settings, seed)
            losses = measure(model, pool, settings)
            found.append(sum(row["target"] * losses[name] for name, row in rows.items()))
            cells = " | ".join(f"{losses[name]:.4f}" for name in rows)
            print(f"| {seed} | {kind} | {found[-1]:.4f} | {cells} | {time.perf_counter() - began:.0f} |", flush=True)
    gains = [natural - found for natural, found in zip(targets["natural"], targets["found"], strict=True)]
    spread = f", standard deviation {statistics.stdev(gains):.4f}" if len(gains) > 1 else ""
    print(f"\nfound below natural by {statistics.mean(gains):.4f} bits per byte{spread}; every seed: {min(gains) > 0}")


if __name__ == "__main__":
    main()
