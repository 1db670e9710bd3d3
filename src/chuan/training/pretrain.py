"""Pre-training: a new model, token shards, and a standard Llama folder at the end.

In: a `PretrainRecipe`. Out: a folder with the resolved recipe, the log, the state, and `model/`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from chuan.checkpoints.save import Extras, save_folder
from chuan.checkpoints.source import DecoderSource
from chuan.corpus.shard_format import hash_file
from chuan.corpus.shards import ShardReader
from chuan.errors import ChuanError
from chuan.inference.device import choose_device
from chuan.model.config import ModelConfig
from chuan.model.decoder import Decoder
from chuan.recipes import load_recipe, render_recipe
from chuan.staging import staged_file
from chuan.tokenizer.folder import load_tokenizer
from chuan.tokenizer.tokenizer import Tokenizer
from chuan.training.loop import Task, Trainer
from chuan.training.loss import LanguageModelLoss
from chuan.training.metrics import choose_compute_dtype, count_bytes, count_operations, measure_products
from chuan.training.optimizer import build_optimizers
from chuan.training.parallel import Ranks, apply_parallel, full_name, join_ranks
from chuan.training.recipe import PretrainRecipe, TrainRecipe
from chuan.training.rows import ShardRows
from chuan.training.watch import plot_curves

RECIPE = "recipe.toml"
# What may change between the parts of one run, because it changes no result, or only what is still to come.
_FREE = {"output", "steps", "device", "parallel", "state", "watch"}


def run_pretrain(path: str, overrides: Sequence[str]) -> int:
    """The verb: an exit code, 0 where the run came to its end."""
    recipe = load_recipe(path, PretrainRecipe, overrides)
    folder = pretrain(recipe)
    if folder is None:
        print(f"{recipe.output}: ended before the last step; the same command goes on from here")
        return 130
    print(f"{folder}: the model; `chuan generate {folder} PROMPT` lets it speak")
    return 0


def pretrain(recipe: PretrainRecipe, stop_after: int | None = None) -> Path | None:
    """Trains, or goes on with what was begun in `recipe.output`; called by every rank.

    Returns the folder of the model, or None where the run was ended before its last step (by a signal, or
    `stop_after`). Raises ChuanError for what the recipe, the data or the disk do not allow.
    """
    device = choose_device(recipe.device).type
    with join_ranks(recipe.parallel, device) as ranks:
        recipe = settle(recipe, ranks)
        config = recipe.model.build_config()
        tokenizer = load_tokenizer(recipe.data.tokenizer)
        reader = ShardReader(recipe.data.shards)
        check_vocabulary(reader, recipe.data.tokenizer, config)
        validation = ShardReader(recipe.data.shards, "validation")
        length = recipe.data.length
        rows = ShardRows(reader, length, recipe.seed)
        # A corpus that is too small to set a row aside is trained on all the same.
        looked_at = ShardRows(validation, length, recipe.seed) if validation.token_count > length else None
        dtype = choose_compute_dtype(recipe.dtype, ranks.device)
        task = Task(
            rows=rows,
            validation=looked_at,
            sizes=count_bytes(tokenizer),
            prompts=[(text, tokenizer.encode(text)) for text in recipe.watch.prompts],
            render=tokenizer.decode,
            operations=count_operations(config, length),
            peak=measure_products(dtype, ranks.device),
        )
        torch.manual_seed(recipe.seed)
        model = LanguageModelLoss(build_decoder(config).to(ranks.device), recipe.loss)
        apply_parallel(model, ranks, recipe.parallel, dtype)
        optimizers = build_optimizers(model.named_parameters(), recipe.optimizer)
        trainer = Trainer(model, optimizers, recipe, ranks, task)
        trainer.resume()
        if not trainer.run(stop_after) or trainer.step < recipe.steps:
            return None
        weights = gather_weights(model)
        folder = Path(recipe.output) / "model"
        if ranks.is_first:
            save_model(folder, config, weights, recipe.loss.normalized_head, dtype, tokenizer, reader)
            plot_curves(Path(recipe.output))
        torch.distributed.barrier()
        return folder


def build_decoder(config: ModelConfig) -> Decoder:
    """A new model in float32: matrices normal with deviation 0.02, those that write into the residual stream smaller by
    the root of twice the layers (Radford et al. 2019, GPT-2, section 2.3)."""
    decoder = Decoder(config)
    small = 0.02 / (2 * config.num_hidden_layers) ** 0.5
    for name, parameter in decoder.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(
                parameter, std=small if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
            )
    return decoder


def settle(recipe: PretrainRecipe, ranks: Ranks) -> PretrainRecipe:
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


def _settle(path: Path, recipe: PretrainRecipe, ranks: Ranks) -> dict[str, Any]:
    chosen = {"dtype": str(choose_compute_dtype(recipe.dtype, ranks.device)).removeprefix("torch.")}
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


def check_vocabulary(reader: ShardReader, tokenizer: str, config: ModelConfig) -> None:
    """Raises ChuanError where shards, tokenizer and model do not belong together."""
    entry = reader.manifest.tokenizer
    path = Path(tokenizer).expanduser()
    file = path / entry.file if path.is_dir() else path
    if not file.is_file() or hash_file(file) != entry.sha256:
        raise ChuanError(
            f"the ids in {reader.folder} are not of the tokenizer {tokenizer}; name the one that the corpus was built "
            "with as data.tokenizer"
        )
    if entry.vocab_size > config.vocab_size:
        raise ChuanError(
            f"the tokenizer has {entry.vocab_size} ids and model.vocab_size is {config.vocab_size}; set it to at least "
            f"{entry.vocab_size}"
        )


def gather_weights(model: LanguageModelLoss) -> dict[str, Tensor]:
    """Every weight, whole, on the first rank's CPU; the others get nothing. Called by all ranks."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = cast("dict[str, Tensor]", get_model_state_dict(model, options=options))
    return {full_name(name): tensor for name, tensor in weights.items()}


def save_model(
    folder: Path,
    config: ModelConfig,
    weights: dict[str, Tensor],
    normalized_head: bool,
    dtype: torch.dtype,
    tokenizer: Tokenizer,
    reader: ShardReader,
) -> None:
    """A standard Llama folder; a normalized head is written as the plain one that it amounts to."""
    if normalized_head:
        weights["lm_head.weight"] = torch.nn.functional.normalize(weights["lm_head.weight"].float(), dim=-1)
    with torch.device("meta"):
        decoder = Decoder(config)
    decoder.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()}, assign=True)
    decoder.tie_head()
    generation = {"bos_token_id": tokenizer.bos_id, "eos_token_id": reader.manifest.tokenizer.eos_id}
    if folder.exists():  # of a shorter run; its state is still there
        shutil.rmtree(folder)
    extras = Extras(generation_config={key: value for key, value in generation.items() if value is not None})
    save_folder(folder, DecoderSource(decoder), tokenizer, extras)
