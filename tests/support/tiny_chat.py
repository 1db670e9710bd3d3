"""A tiny chat model, conversations, and recipes of fine-tuning that take a second or two."""

from __future__ import annotations

import json
import random
from pathlib import Path

from chuan.recipes import load_recipe
from chuan.training.recipe import FinetuneRecipe
from tests.support.folders import write_baichuan_folder, write_llama_folder
from tests.support.tiny_tokenizer import WORDS, train_tiny_sentencepiece

_SHORT = [word for word in WORDS if len(word) < 5]  # byte-level pieces are many

RECIPE = """
output = "{folder}/run"
base = "{folder}/base"
device = "cpu"
dtype = "float32"
steps = 6
[data]
files = ["{folder}/chat.jsonl"]
length = 48
validation = 0.2
[batch]
rows = 4
micro_rows = 2
[optimizer]
learning_rate = 0.003
[schedule]
warmup = 2
[state]
every = 1
[watch]
log = 1
validate_every = 3
"""


def write_tiny_chat(folder: Path, layout: str = "llama") -> Path:
    """Base, conversations and recipe beside each other; returns the recipe's file."""
    if layout == "llama":
        write_llama_folder(folder / "base")
    else:
        write_baichuan_folder(folder / "base", model_file=train_tiny_sentencepiece(dummy_prefix=False))
    rng = random.Random(0)
    with (folder / "chat.jsonl").open("w") as file:
        for _ in range(60):
            asked = rng.choice(_SHORT)
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": f"{asked} {asked[::-1]}"}]
            file.write(json.dumps({"messages": turns}) + "\n")
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(folder=folder))
    return path


def read_tiny_chat(path: Path, *overrides: str) -> FinetuneRecipe:
    return load_recipe(path, FinetuneRecipe, overrides)
