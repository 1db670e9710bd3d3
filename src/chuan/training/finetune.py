"""Fine-tuning: a model that is there, conversations, and a Llama folder or an adapter at the end.

In: a `FinetuneRecipe`. Out: a folder with the resolved recipe, what became of the data, the log, the state, and
`model/` or `adapter/`.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from chuan.chat.formats import ChatFormat
from chuan.chat.messages import Message
from chuan.checkpoints.catalogue import resolve_model
from chuan.checkpoints.checkpoint import Checkpoint, load_decoder
from chuan.checkpoints.save import Extras
from chuan.errors import ChuanError
from chuan.inference.device import choose_device
from chuan.inference.load import (
    build_chat_format,
    build_extras,
    check_tokenizer,
    open_checkpoint,
    read_stop_ids,
)
from chuan.json_file import save_json
from chuan.recipes import load_recipe
from chuan.staging import staged_file
from chuan.tokenizer.tokenizer import Tokenizer
from chuan.training.conversations import read_conversations
from chuan.training.lessons import Encoded, LessonRows, encode, is_held_out
from chuan.training.loop import Task, train
from chuan.training.lora import apply_lora, write_adapter
from chuan.training.loss import LanguageModelLoss
from chuan.training.metrics import choose_compute_dtype, count_bytes, count_operations, measure_products
from chuan.training.parallel import join_ranks
from chuan.training.recipe import ChatSettings, FinetuneRecipe
from chuan.training.run_folder import save_model, settle
from chuan.training.show import print_lesson
from chuan.training.watch import plot_curves

DATA = "data.json"
_SHOWN = 20  # bad records that are named


@dataclass(frozen=True)
class Base:
    """What is fine-tuned, without its weights."""

    checkpoint: Checkpoint
    tokenizer: Tokenizer
    chat_format: ChatFormat
    extras: Extras


@dataclass(frozen=True)
class Lessons:
    """Encoded conversations, and what became of the others."""

    training: list[Encoded]
    validation: list[Encoded]
    facts: dict[str, Any]


def run_finetune(path: str, overrides: Sequence[str], show: int) -> int:
    """The verb: an exit code, 0 where the run came to its end, or where `show` conversations were shown instead."""
    recipe = load_recipe(path, FinetuneRecipe, overrides)
    if show:
        base = open_base(recipe)
        shown = 0
        for place, messages in (record for name in recipe.data.files for record in read_conversations(Path(name))):
            if shown == show:
                break
            if isinstance(messages, str):
                print(f"{place}: {messages}")
                continue
            print_lesson(place, encode(base.chat_format, messages, recipe.data.length), base.tokenizer)
            shown += 1
        return 0
    folder = finetune(recipe)
    if folder is None:
        print(f"{recipe.output}: ended before the last step; the same command goes on from here")
        return 130
    if recipe.lora is None:
        print(f"{folder}: the model; `chuan chat {folder}` talks to it")
    else:
        print(f"{folder}: the adapter; `chuan merge {folder} FOLDER` makes a model of it and its base")
    return 0


def finetune(recipe: FinetuneRecipe, stop_after: int | None = None) -> Path | None:
    """Trains, or goes on with what was begun in `recipe.output`; called by every rank.

    Returns the folder of the model or the adapter, or None where the run was ended before its last step. Raises
    ChuanError for what the recipe, the base, the data or the disk do not allow.
    """
    device = choose_device(recipe.device).type
    with join_ranks(recipe.parallel, device) as ranks:
        base = open_base(recipe)
        recipe = settle(recipe, ranks)
        lessons = load_lessons(recipe, base, watched=ranks.is_first)
        config, length = base.checkpoint.config, recipe.data.length
        rows = LessonRows(lessons.training, length, recipe.seed)
        if ranks.is_first:
            write_facts(Path(recipe.output) / DATA, lessons.facts | {"rows": len(rows), "filled": rows.filled})
        steps = recipe.steps or max(1, math.ceil(recipe.epochs * len(rows) / recipe.batch.rows))
        recipe = recipe.model_copy(update={"steps": steps})
        dtype = choose_compute_dtype(recipe.dtype, ranks.device)
        # A frozen base needs no way back through its own weights, a third of all.
        operations = count_operations(config, length) * (3 if recipe.lora is None else 2) // 3
        task = Task(
            rows=rows,
            validation=LessonRows(lessons.validation, length, recipe.seed) if lessons.validation else None,
            sizes=count_bytes(base.tokenizer),
            prompts=[
                (text, base.chat_format.render((Message("user", text),), length, None)) for text in recipe.watch.prompts
            ],
            render=base.tokenizer.decode,
            operations=operations,
            peak=measure_products(dtype, ranks.device),
        )
        model = build_model(recipe, base, dtype, ranks.device)
        weights = train(model, recipe, ranks, task, dtype, stop_after)
        if weights is None:
            return None
        folder = Path(recipe.output) / ("model" if recipe.lora is None else "adapter")
        if ranks.is_first:
            if recipe.lora is None:
                normalized = recipe.loss.normalized_head
                save_model(folder, config, weights, normalized, dtype, base.tokenizer, base.extras)
            else:
                shutil.rmtree(folder, ignore_errors=True)  # of a shorter run; its state is still there
                chat = base.extras if recipe.chat is not None else None
                write_adapter(folder, weights, recipe.lora, recipe.base, base.extras.origin, chat)
            plot_curves(Path(recipe.output))
        torch.distributed.barrier()
        return folder


def open_base(recipe: FinetuneRecipe) -> Base:
    """Reads what the base says about itself and the chat format that it is to have.

    Raises ChuanError where there is none, or where the rows are longer than its context.
    """
    checkpoint = open_checkpoint(resolve_model(recipe.base))
    tokenizer = checkpoint.load_tokenizer()
    check_tokenizer(checkpoint, tokenizer)
    if recipe.data.length > checkpoint.config.context_length:
        raise ChuanError(
            f"data.length {recipe.data.length} is more than the {checkpoint.config.context_length} tokens of "
            f"{recipe.base}'s context; lower it"
        )
    if recipe.chat is not None:
        checkpoint = choose_chat(checkpoint, tokenizer, recipe.chat)
    chat_format = build_chat_format(checkpoint, tokenizer)
    if chat_format is None:
        raise ChuanError(
            f"{recipe.base} has no chat format; set chat.template to a Jinja file, or chat.user and chat.assistant to "
            "two control pieces of its tokenizer"
        )
    if recipe.chat is not None and recipe.chat.template is not None:
        checkpoint = _add_stop_id(checkpoint, tokenizer, chat_format)
    return Base(checkpoint, tokenizer, chat_format, build_extras(recipe.base, checkpoint, tokenizer))


def choose_chat(checkpoint: Checkpoint, tokenizer: Tokenizer, settings: ChatSettings) -> Checkpoint:
    """The checkpoint as if it came with this chat format."""
    roles = ("user_token_id", "assistant_token_id")
    generation = {key: value for key, value in checkpoint.generation_config.items() if key not in roles}
    if settings.template is not None:
        try:
            text = Path(settings.template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ChuanError(f"chat.template {settings.template} cannot be read: {reason}") from None
        return replace(checkpoint, role_ids=None, generation_config=generation, chat_template=text)
    ids = []
    for key, piece in (("user", settings.user), ("assistant", settings.assistant)):
        index = tokenizer.control_pieces.get(piece or "")
        if index is None:
            raise ChuanError(
                f"chat.{key} {piece!r:.60} is no control piece of the tokenizer; there are "
                f"{', '.join(list(tokenizer.control_pieces)[:8])} ..."
            )
        ids.append(index)
    if ids[0] == ids[1]:
        raise ChuanError("chat.user and chat.assistant are the same piece; name two")
    generation |= dict(zip(roles, ids, strict=True))
    return replace(checkpoint, role_ids=(ids[0], ids[1]), generation_config=generation)


def load_lessons(recipe: FinetuneRecipe, base: Base, watched: bool = False) -> Lessons:
    """Every conversation of the files, encoded; a bar on a terminal where it is `watched`.

    Raises ChuanError where more records are of no use than `data.bad` allows.
    """
    training: list[Encoded] = []
    validation: list[Encoded] = []
    bad: list[tuple[str, str]] = []
    facts = dict.fromkeys(("records", "cut", "cut_tokens"), 0)
    console = Console(stderr=True)
    records = (record for name in recipe.data.files for record in read_conversations(Path(name)))
    shown = watched and console.is_terminal
    for place, messages in track(records, "conversations", console=console, disable=not shown, transient=True):
        facts["records"] += 1
        if isinstance(messages, str):
            bad.append((place, messages))
            continue
        try:
            encoded = encode(base.chat_format, messages, recipe.data.length)
        except ChuanError as error:
            bad.append((place, str(error)))
            continue
        facts["cut"] += encoded.cut > 0
        facts["cut_tokens"] += encoded.cut
        if not encoded.target_count:
            bad.append((place, f"no answer begins in its first {recipe.data.length} tokens; raise data.length"))
        else:
            (validation if is_held_out(encoded, recipe.data.validation) else training).append(encoded)
    if len(bad) > recipe.data.bad * facts["records"]:
        raise ChuanError(
            f"{len(bad)} of {facts['records']} records are of no use, more than data.bad allows; the first: "
            f"{bad[0][0]}: {bad[0][1]}"
        )
    if bad and watched:
        console.print(
            f"{len(bad)} of {facts['records']} records are of no use and left out; the first: {bad[0][0]}: {bad[0][1]}",
            markup=False,
            soft_wrap=True,
        )
    both = training + validation
    counts = {
        "training": len(training),
        "validation": len(validation),
        "tokens": sum(len(item.tokens) for item in both),
        "learned_tokens": sum(item.target_count for item in both),
        "bad": len(bad),
        "first_bad": bad[:_SHOWN],
    }
    return Lessons(training, validation, facts | counts)


def write_facts(path: Path, facts: dict[str, Any]) -> None:
    with staged_file(path) as temporary:
        save_json(temporary, facts)


def build_model(recipe: FinetuneRecipe, base: Base, dtype: torch.dtype, device: torch.device) -> LanguageModelLoss:
    """The base with its loss: every weight trained in float32, or frozen in `dtype` or few bits beside an adapter."""
    torch.manual_seed(recipe.seed)
    if recipe.lora is None:
        decoder = load_decoder(base.checkpoint, torch.float32, device, bits=16)
        decoder.requires_grad_(True)
    else:
        decoder = load_decoder(base.checkpoint, dtype, device, bits=recipe.lora.bits)
        apply_lora(decoder, recipe.lora)
    return LanguageModelLoss(decoder, recipe.loss).train()


def _add_stop_id(checkpoint: Checkpoint, tokenizer: Tokenizer, chat_format: ChatFormat) -> Checkpoint:
    """The control id that the template ends an answer with ends it in generation too."""
    lesson = chat_format.build_lesson((Message("user", "?"), Message("assistant", "!")))
    control = set(tokenizer.control_pieces.values())
    ends = [target for target in lesson.targets if target in control]
    known = sorted(read_stop_ids(checkpoint.generation_config, tokenizer))
    if not ends or ends[-1] in known:
        return checkpoint
    generation = {**checkpoint.generation_config, "eos_token_id": [ends[-1], *known]}
    return replace(checkpoint, generation_config=generation)
