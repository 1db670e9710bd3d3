"""The loop: one for pre-training, fine-tuning and adapters.

In: a model on its ranks, rows, settings. Out: a trained model, its state on disk, a log. Knows no files of data and no
kind of training: `pretrain` and `finetune` bring their own.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from chuan.errors import ChuanError
from chuan.training.float8 import apply_float8
from chuan.training.loss import LanguageModelLoss
from chuan.training.optimizer import build_optimizers, clip_gradients, scale_of, set_learning_rate
from chuan.training.parallel import Ranks, apply_parallel, gather_weights, prepare_part
from chuan.training.recipe import TrainRecipe
from chuan.training.rows import IGNORED, Batch, Rows, take_batch
from chuan.training.state import StateFolder
from chuan.training.watch import Watcher


@dataclass(frozen=True)
class Task:
    """What is trained on and looked at.

    `sizes` (V,) are the bytes that each id stands for, to measure in bits per byte; `render` makes text of ids, and
    `prompts` are ids to go on from.
    """

    rows: Rows
    validation: Rows | None
    sizes: np.ndarray
    prompts: Sequence[tuple[str, list[int]]]
    render: Callable[[list[int]], str]
    operations: int  # floating-point operations a token
    peak: float  # those that a rank can do in a second


def train(
    model: LanguageModelLoss,
    recipe: TrainRecipe,
    ranks: Ranks,
    task: Task,
    dtype: torch.dtype,
    stop_after: int | None = None,
) -> dict[str, Tensor] | None:
    """Spreads a model over its ranks and trains it from where its run stands.

    Returns what was trained, whole on the first rank and empty on the others; None where the run ended before its last
    step.
    """
    trainer = build_trainer(model, recipe, ranks, task, dtype)
    trainer.resume()
    if not trainer.run(stop_after) or trainer.step < recipe.steps:
        return None
    return gather_weights(model)


def build_trainer(
    model: LanguageModelLoss, recipe: TrainRecipe, ranks: Ranks, task: Task, dtype: torch.dtype
) -> Trainer:
    """A run at its beginning, its model spread over its ranks."""
    if recipe.dtype == "float8":
        apply_float8(model, ranks.device)
    apply_parallel(model, ranks, recipe.parallel, dtype)
    optimizers = build_optimizers(model.named_parameters(), recipe.optimizer, dtype)
    return Trainer(model, optimizers, recipe, ranks, task)


class Trainer:
    """A run: model, optimizers, and where it stands. `step` counts those that are done."""

    def __init__(
        self, model: LanguageModelLoss, optimizers: Sequence[Optimizer], recipe: TrainRecipe, ranks: Ranks, task: Task
    ) -> None:
        """Raises ChuanError where the rows of a step cannot be shared out evenly."""
        self.model, self.optimizers, self.recipe, self.ranks, self.task = model, optimizers, recipe, ranks, task
        if recipe.batch.rows % ranks.data_size:
            raise ChuanError(
                f"batch.rows {recipe.batch.rows} cannot be shared out evenly over {ranks.data_size} ranks; change "
                "it or the number of processes"
            )
        self.folder = Path(recipe.output)
        self.states = StateFolder(self.folder / "state", ranks, recipe.state)
        self.step = 0

    def resume(self) -> bool:
        """Goes to the newest whole state, where there is one."""
        newest = self.states.find_newest()
        if newest is not None:
            self.states.load(newest, self.model, self.optimizers)
            self.step = newest
        return newest is not None

    def run(self, stop_after: int | None = None) -> bool:
        """Trains up to the last step, or to `stop_after`. False where a signal ended the run; its state is saved then.

        Raises ChuanError where a loss or gradient is not finite (the batch is kept), or a state cannot be written.
        """
        recipe = self.recipe
        last = recipe.steps if stop_after is None else min(stop_after, recipe.steps)
        watcher = Watcher(self.folder, self.step, recipe.steps) if self.ranks.is_first else None
        try:
            with _catch_signals() as asked:
                while self.step < last:
                    stopped = self._take_step(watcher, asked)
                    ended = self.step == last or stopped
                    if ended or self.step % recipe.state.every == 0:
                        self.states.save(self.step, self.model, self.optimizers)
                    if stopped:
                        return self.step == recipe.steps
            return True
        finally:
            try:
                self.states.wait()
            finally:
                if watcher is not None:
                    watcher.close()

    def _take_step(self, watcher: Watcher | None, asked: Sequence[int]) -> bool:
        """One step and what is due after it; True where a signal came to any rank."""
        began = time.perf_counter()
        recipe, number = self.recipe, self.step
        learning_rate = recipe.optimizer.learning_rate * scale_of(number, recipe.steps, recipe.schedule)
        set_learning_rate(self.optimizers, learning_rate)
        loss, norm, stopped = self.update(number, bool(asked))
        self.step += 1
        values = {}
        if self.step % recipe.watch.log == 0 or self.step == recipe.steps:
            seconds = time.perf_counter() - began
            tokens = recipe.batch.rows * self.task.rows.length
            rate = tokens / seconds
            peak = self.task.peak * dist.get_world_size()
            values = {
                "loss": loss,
                "gradient_norm": norm,
                "learning_rate": learning_rate,
                "tokens_per_second": rate,
                "utilisation": rate * self.task.operations / peak,
            }
        if self._is_due(recipe.watch.validate_every) and self.task.validation is not None:
            values["validation_bits_per_byte"] = self.validate()
        if values and watcher is not None:
            watcher.log(self.step, **values)
        if self._is_due(recipe.watch.sample_every):
            for prompt, ids in self.task.prompts:
                text = self.task.render(self.continue_greedily(ids))
                if watcher is not None:
                    watcher.sample(self.step, prompt, text)
        if watcher is not None:
            watcher.step(self.step)
        return stopped

    def _is_due(self, every: int) -> bool:
        return bool(every) and (self.step % every == 0 or self.step == self.recipe.steps)

    def update(self, number: int, asked: bool = False) -> tuple[float, float, bool]:
        """Step `number`: the loss a target token before it, its gradient's norm, whether any rank was asked to stop."""
        batch, ranks = self.take_share(number), self.ranks
        # The loss is a mean over all target tokens of the step, wherever they lie: ranks and parts of a batch with few
        # of them must not weigh more.
        count = self._sum(batch.target_count)[0]
        if count == 0:
            raise ChuanError(f"step {number + 1} has no token to learn from; check the data of its rows")
        torch.manual_seed(_mix(self.recipe.seed, number, ranks.data_rank))
        nll = torch.zeros((), device=ranks.device)
        parts = batch.split(self.recipe.batch.micro_rows)
        for index, part in enumerate(parts):
            prepare_part(self.model, ranks, last=index + 1 == len(parts))
            tokens, documents, targets = self._to_device(part)
            total, part_nll = self.model(tokens, documents, targets)
            # Gradients are averaged over the ranks that see different rows.
            (total * (ranks.data_size / count)).backward()
            nll += part_nll
        loss, stops = self._sum(nll, float(asked))
        loss /= count
        norm = clip_gradients(self.model.parameters(), self.recipe.optimizer.clip)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._keep_batch(number, batch)
            raise ChuanError(
                f"step {number + 1}: the loss is {loss} and the norm of its gradient {norm}; the rows are in "
                f"{self.folder}/not-finite-*.npz and the last whole state is kept. A smaller learning rate, or another "
                "seed, may get past it"
            )
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss, norm, stops > 0

    def take_share(self, number: int) -> Batch:
        """This rank's rows of a step: a pure function of its number."""
        share = self.recipe.batch.rows // self.ranks.data_size
        first = number * self.recipe.batch.rows + self.ranks.data_rank * share
        return take_batch(self.task.rows, first, share)

    @torch.no_grad()
    def validate(self) -> float:
        """Bits per byte of the validation rows."""
        self.model.eval()  # nothing is dropped while a model is measured
        try:
            return self._measure_bits_per_byte()
        finally:
            self.model.train()

    def _measure_bits_per_byte(self) -> float:
        rows, ranks = self.task.validation, self.ranks
        assert rows is not None
        count = min(self.recipe.watch.validation_rows, len(rows))
        width = self.recipe.batch.micro_rows
        nll, size = 0.0, 0
        # Every rank goes as often through the model as the others; rows past the end count nothing.
        for first in range(0, count, width * ranks.data_size):
            numbers = range(first + ranks.data_rank * width, first + (ranks.data_rank + 1) * width)
            part = Batch.stack([rows.row(number % len(rows)) for number in numbers])
            part.targets[[number >= count for number in numbers]] = IGNORED
            nll += float(self.model(*self._to_device(part))[1])
            size += int(self.task.sizes[part.targets[part.targets != IGNORED]].sum())
        total, bytes_seen = self._sum(nll, size)
        return total / math.log(2) / bytes_seen if bytes_seen else math.nan

    @torch.no_grad()
    def continue_greedily(self, ids: Sequence[int], new: int = 48) -> list[int]:
        """The likeliest continuation. Nothing is compiled for it: every length would be compiled anew."""
        length = min(self.task.rows.length, len(ids) + new)
        window = torch.zeros(1, length, dtype=torch.long, device=self.ranks.device)
        seen = list(ids)[: length - 1]
        window[0, : len(seen)] = torch.tensor(seen)
        self.model.eval()
        with torch.compiler.set_stance("force_eager"):
            for position in range(len(seen) - 1, length - 1):
                window[0, position + 1] = self.model(window, torch.zeros_like(window), None, position)[1][0]
        self.model.train()
        return window[0, len(seen) :].tolist()

    def _to_device(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        device = self.ranks.device
        fields = (batch.tokens, batch.documents, batch.targets)
        tokens, documents, targets = (torch.from_numpy(field).to(device, torch.long) for field in fields)
        return tokens, documents, targets

    def _sum(self, *values: Tensor | float) -> list[float]:
        """Sums over the ranks that see different rows; each is the same on all tensor-parallel ranks."""
        device = self.ranks.device
        numbers = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=device) for value in values])
        dist.all_reduce(numbers)
        return [float(number) / self.ranks.mesh["tensor"].size() for number in numbers]

    def _keep_batch(self, number: int, batch: Batch) -> None:
        name = f"not-finite-{number + 1:08}-rank-{dist.get_rank()}.npz"
        np.savez(self.folder / name, tokens=batch.tokens, targets=batch.targets, documents=batch.documents)


def _mix(seed: int, step: int, rank: int) -> int:
    """A seed for the dropout of a step, so that nothing of it is to be saved."""
    return int(np.random.SeedSequence((seed % (1 << 63), step, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def _catch_signals() -> Iterator[list[int]]:
    """The signals that asked for an end meanwhile: the step is finished and its state saved."""
    asked: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, frame: asked.append(number)) for number in numbers]
    try:
        yield asked
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
