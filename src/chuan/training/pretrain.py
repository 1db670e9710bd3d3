"""Pre-training: a new model, token shards, and a standard Llama folder at the end.

In: a `PretrainRecipe`. Out: a folder with the resolved recipe, the log, the state, and `model/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from chuan.checkpoints.save import Extras
from chuan.corpus.shard_format import hash_file
from chuan.corpus.shards import ShardReader
from chuan.errors import ChuanError
from chuan.inference.device import choose_device
from chuan.model.config import ModelConfig
from chuan.model.decoder import Decoder
from chuan.recipes import load_recipe
from chuan.tokenizer.folder import load_tokenizer
from chuan.training.loop import Task, train
from chuan.training.loss import LanguageModelLoss
from chuan.training.metrics import choose_compute_dtype, count_bytes, count_operations, measure_products
from chuan.training.parallel import join_ranks
from chuan.training.recipe import PretrainRecipe
from chuan.training.rows import ShardRows
from chuan.training.run_folder import save_model, settle
from chuan.training.watch import plot_curves


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
        with ranks.device:  # a GPU draws 7e9 numbers in a blink, a CPU in minutes
            model = LanguageModelLoss(build_decoder(config), recipe.loss)
        weights = train(model, recipe, ranks, task, dtype, stop_after)
        if weights is None:
            return None
        folder = Path(recipe.output) / "model"
        if ranks.is_first:
            ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": reader.manifest.tokenizer.eos_id}
            extras = Extras(generation_config={key: value for key, value in ids.items() if value is not None})
            save_model(folder, config, weights, recipe.loss.normalized_head, dtype, tokenizer, extras)
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
