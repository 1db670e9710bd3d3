"""A run's folder: the recipe that it was begun with, whether this one may go on with it, and the model at its end.

In: a recipe; trained weights. Out: the recipe with nothing left open, in memory and on disk; a Llama folder.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from chuan.checkpoints.save import Extras, save_folder
from chuan.checkpoints.source import DecoderSource
from chuan.errors import ChuanError
from chuan.model.config import ModelConfig
from chuan.model.decoder import Decoder
from chuan.recipes import load_recipe, render_recipe
from chuan.staging import staged_file
from chuan.tokenizer.tokenizer import Tokenizer
from chuan.training.metrics import choose_compute_dtype
from chuan.training.parallel import Ranks
from chuan.training.recipe import TrainRecipe

RECIPE = "recipe.toml"
R = TypeVar("R", bound=TrainRecipe)
# What may change between the parts of one run, because it changes no result, or only what is still to come.
_FREE = {"output", "steps", "epochs", "device", "parallel", "state", "watch"}


def settle(recipe: R, ranks: Ranks) -> R:
    """Chooses what "auto" leaves open, and writes it down; a run that goes on keeps what was chosen when it began.

    Raises ChuanError where the folder holds a run of another recipe.
    """
    settled: list[Any] = [None]
    if ranks.is_first:
        path = Path(recipe.output) / RECIPE
        try:
            settled = [_settle(path, recipe, ranks)]
        except ChuanError as error:
            settled = [str(error)]
    torch.distributed.broadcast_object_list(settled, src=0)
    if isinstance(settled[0], str):
        raise ChuanError(settled[0])
    return recipe.model_copy(update=settled[0])


def _settle(path: Path, recipe: TrainRecipe, ranks: Ranks) -> dict[str, Any]:
    chosen: dict[str, Any] = {"dtype": recipe.dtype}
    if recipe.dtype == "auto":
        chosen = {"dtype": str(choose_compute_dtype("auto", ranks.device)).removeprefix("torch.")}
    if path.exists():
        begun = load_recipe(path, type(recipe))
        if recipe.dtype == "auto":
            chosen = {"dtype": begun.dtype}
        check_same_run(begun, recipe.model_copy(update=chosen))
    resolved = recipe.model_copy(update=chosen)
    with staged_file(path) as temporary:
        temporary.write_text(render_recipe(resolved), encoding="utf-8")
    return chosen


def check_same_run(begun: TrainRecipe, now: TrainRecipe) -> None:
    """Raises ChuanError where a recipe would go on with a run that began otherwise."""
    old, new = _flatten(begun.model_dump()), _flatten(now.model_dump())
    for key in sorted(old.keys() | new.keys()):
        free = key.split(".")[0] in _FREE or key == "batch.micro_rows"
        if not free and old.get(key) != new.get(key):
            raise ChuanError(
                f"{now.output} holds a run with {key} = {old.get(key)!r}, not {new.get(key)!r}; set it back to go on, "
                "or choose another output"
            )


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def save_model(
    folder: Path,
    config: ModelConfig,
    weights: dict[str, Tensor],
    normalized_head: bool,
    dtype: torch.dtype,
    tokenizer: Tokenizer,
    extras: Extras,
) -> None:
    """A standard Llama folder; a normalized head is written as the plain one that it amounts to."""
    if normalized_head:
        weights["lm_head.weight"] = torch.nn.functional.normalize(weights["lm_head.weight"].float(), dim=-1)
    with torch.device("meta"):
        decoder = Decoder(config)
    decoder.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()}, assign=True)
    decoder.tie_head()
    if folder.exists():  # of a shorter run; its state is still there
        shutil.rmtree(folder)
    save_folder(folder, DecoderSource(decoder), tokenizer, extras)
