"""The state of a run on disk: written while training goes on, whole or not at all, and found again.

In: a model and its optimizers, on any number of ranks. Out: one folder a step, in torch's distributed checkpoint format
(DCP), which another number of ranks can read. Knows no data: where a run stood in it is a function of the step.

A folder is written under a temporary name, hashed, marked (`complete.json`, last) and renamed; so what has its name is
whole. DCP describes its files with pickle: a state is opened where it was made, a model for others is the folder that
training writes at its end.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from pydantic import Field
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.optim import Optimizer

from chuan.corpus.shard_format import hash_file
from chuan.errors import ChuanError, first_line
from chuan.json_file import save_json
from chuan.recipes import Settings
from chuan.staging import flush
from chuan.training.parallel import Ranks

_MARKER = "complete.json"
_NAME = re.compile(r"step-(\d{8})")
# Frozen weights are the base model's, which is on disk already.
_OPTIONS = StateDictOptions(flatten_optimizer_state_dict=True, ignore_frozen_params=True)


class StateSettings(Settings):
    """How often a run's state is written, in steps, and how many are kept."""

    every: int = Field(default=500, ge=1)
    keep: int = Field(default=2, ge=1)


class StateFolder:
    """The states of one run. Every method is called by all ranks together."""

    def __init__(self, folder: Path, ranks: Ranks, settings: StateSettings) -> None:
        self._folder, self._ranks, self._settings = folder, ranks, settings
        self._writing: threading.Thread | None = None
        self._error: BaseException | None = None
        if ranks.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob(".*.partial"):  # of a run that was killed while it wrote
                shutil.rmtree(path)

    def save(self, step: int, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Copies the state of `step` and writes the copy while the caller goes on; waits for the write before it.

        Raises ChuanError where the write before it failed.
        """
        self.wait()
        partial = self._folder / f".{_name(step)}.partial"
        future = dcp.async_save(
            _collect(model, optimizers),
            storage_writer=dcp.FileSystemWriter(partial),
            process_group=self._ranks.state_group,
        )
        self._writing = threading.Thread(target=self._finish, args=(step, partial, future))
        self._writing.start()

    def wait(self) -> None:
        """Until what is being written is on disk. Raises ChuanError where it could not be."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        failed = [None] * dist.get_world_size()
        dist.all_gather_object(failed, None if self._error is None else _describe(self._error))
        reasons = [reason for reason in failed if reason is not None]
        if reasons:
            raise ChuanError(
                f"the training state could not be written to {self._folder}: {reasons[0]}; put that right and "
                "start again: the run goes on from the newest whole state"
            )

    def find_newest(self) -> int | None:
        """The newest step whose files are all as they were written; older ones are tried where it is not."""
        found: list[int | None] = [None]
        if self._ranks.is_first:
            for step in sorted(self._steps(), reverse=True):
                problem = _check(self._folder / _name(step))
                if problem is None:
                    found = [step]
                    break
                print(f"chuan: the state of step {step} is damaged ({problem}) and is left out", flush=True)
        dist.broadcast_object_list(found, src=0)
        return found[0]

    def load(self, step: int, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Puts the state of `step` into model and optimizers, whatever number of ranks wrote it."""
        state = _collect(model, optimizers)
        dcp.load(state, checkpoint_id=self._folder / _name(step))
        set_state_dict(
            model,
            list(optimizers),
            model_state_dict=state["model"],
            optim_state_dict=state["optimizers"],
            options=StateDictOptions(flatten_optimizer_state_dict=True, ignore_frozen_params=True, strict=False),
        )

    def _finish(self, step: int, partial: Path, future: Future[Any]) -> None:
        """On the first rank, once every rank has written its part: hashes, marker, name; then the oldest may go."""
        try:
            future.result()
            if not self._ranks.is_first:
                return
            files = {path.name: hash_file(path) for path in sorted(partial.iterdir())}
            save_json(partial / _MARKER, {"step": step, "ranks": dist.get_world_size(), "files": files})
            flush(partial)
            target = self._folder / _name(step)
            if target.exists():  # a damaged one that was left out when the run was resumed
                shutil.rmtree(target)
            os.rename(partial, target)
            flush(self._folder)
            for old in sorted(self._steps())[: -self._settings.keep]:
                shutil.rmtree(self._folder / _name(old))
        except BaseException as error:  # handed to the thread that trains, which ends the run
            self._error = error

    def _steps(self) -> list[int]:
        names = (_NAME.fullmatch(path.name) for path in self._folder.iterdir())
        return [int(match.group(1)) for match in names if match]


def _name(step: int) -> str:
    return f"step-{step:08}"


def _collect(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    # Weights first: that puts away what a measurement left whole.
    weights, states = get_state_dict(model, list(optimizers), options=_OPTIONS)
    return {"model": weights, "optimizers": states}


def _check(folder: Path) -> str | None:
    """What is wrong with a state, if anything is."""
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        files = cast("dict[str, str]", marker["files"])
        for name, expected in files.items():
            if hash_file(folder / name) != expected:
                return f"{name} is not what was written"
    except OSError as error:
        return f"{Path(error.filename or folder).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{_MARKER} cannot be read"
    return None


def _describe(error: BaseException) -> str:
    """The first reason that an operating system gave, else the error's own words."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        failures = getattr(cause, "failures", None)
        if failures:
            return _describe(next(iter(failures.values()))[0])
        cause = cause.__cause__ or cause.__context__
    return first_line(error)
