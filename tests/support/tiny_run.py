"""A training run of a few seconds."""

from __future__ import annotations

from pathlib import Path

from chuan.recipes import load_recipe
from chuan.training.recipe import PretrainRecipe
from chuan.training.watch import read_log
from tests.support.tiny_shards import build_tiny_shards

RECIPE = """
output = "{folder}/run"
steps = 6
device = "cpu"
dtype = "float32"
[model]
vocab_size = 900
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 4
max_position_embeddings = 64
[data]
shards = "{shards}"
tokenizer = "{tokenizer}"
length = 32
[batch]
rows = 4
micro_rows = 2
[optimizer]
learning_rate = 0.01
[schedule]
warmup = 2
[state]
every = 1
[watch]
log = 1
validate_every = 3
validation_rows = 5
"""


def write_tiny_recipe(folder: Path) -> Path:
    """The recipe's file; its shards and tokenizer are beside it."""
    shards, tokenizer = build_tiny_shards(folder)
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(folder=folder, shards=shards, tokenizer=tokenizer))
    return path


def read_tiny_recipe(path: Path, *overrides: str) -> PretrainRecipe:
    return load_recipe(path, PretrainRecipe, overrides)


def curve(folder: Path) -> list[tuple[int, float]]:
    """(step, loss) of a run so far."""
    return [(entry["step"], entry["loss"]) for entry in read_log(folder) if "loss" in entry]
