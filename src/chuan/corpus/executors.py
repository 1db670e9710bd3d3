"""Who runs the tasks of a stage: processes of this machine, Slurm, or Ray; all three are datatrove's executors.

In: a stage and the folder of its work. Out: the stage done, or one line that says why not. A task that was finished
before is skipped (datatrove's `completions/RANK`); one that was killed is run again from its start. Every task leaves
what it took in `usage/RANK.json`, and what libraries print in `logs`. Knows nothing of what the steps do.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.util
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Literal

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger
from pydantic import Field

from chuan.corpus.stages import Stage
from chuan.errors import ChuanError, first_line
from chuan.recipes import Settings

_TICK = 0.5  # seconds between two looks at how far the tasks are
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ExecutorSettings(Settings):
    """Where tasks run. For Slurm and Ray the output and the data lie on a file system that all machines share."""

    kind: Literal["local", "slurm", "ray"] = "local"
    cpus_per_task: int = Field(default=1, ge=1)  # Slurm and Ray, as the next
    memory_gb: int = Field(default=2, ge=1)  # a CPU
    address: str | None = None  # Ray: of a cluster; without it, Ray starts on this machine
    partition: str = "cpu"  # Slurm, as all below
    time: str = "24:00:00"
    qos: str = "normal"
    setup: str | None = None  # a shell command before each task; without it, this Python is used
    sbatch: dict[str, str] = Field(default={})  # further options of sbatch


class Pulse(PipelineStep):
    """Says how much came by, twice a second, in `pulse/RANK.json`."""

    type = "Pulse"
    name = "Pulse"

    def __init__(self, work: str) -> None:
        super().__init__()
        self.folder = Path(work, "pulse")

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{rank:05d}.json"
        documents = size = 0
        due = 0.0
        for item in data or ():
            documents += 1
            size += len(getattr(item, "text", "").encode("utf-8", "surrogatepass"))
            if documents % 64 == 0 and time.monotonic() >= due:
                path.write_text(json.dumps({"documents": documents, "bytes": size}), encoding="utf-8")
                due = time.monotonic() + _TICK
            yield item
        path.write_text(json.dumps({"documents": documents, "bytes": size}), encoding="utf-8")


class _Measured(PipelineExecutor):
    """Of each task: its time, its largest memory; what it prints goes to a file."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        folder = Path(self.logging_dir.resolve_paths(""))
        for name in ("usage", "logs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        began, began_cpu = time.monotonic(), time.process_time()
        with (
            (folder / "logs" / f"output_{rank:05d}.log").open("w", encoding="utf-8") as output,
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
        ):
            stats = super()._run_for_rank(rank, local_rank, node_rank)
            logger.remove()  # datatrove has just given it the file that closes here
        usage = {
            "seconds": time.monotonic() - began,
            "cpu_seconds": time.process_time() - began_cpu,
            # kilobytes on Linux, bytes on macOS
            "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            * (1 if sys.platform == "darwin" else 1024),
        }
        (folder / "usage" / f"{rank:05d}.json").write_text(json.dumps(usage), encoding="utf-8")
        return stats


class _Local(_Measured, LocalPipelineExecutor):
    pass


class _Slurm(_Measured, SlurmPipelineExecutor):
    pass


class _Ray(_Measured, RayPipelineExecutor):
    pass


class Runner:
    """Runs stages, one after the other; local processes are started once for all of them."""

    def __init__(self, settings: ExecutorSettings, workers: int, lock: Path) -> None:
        """`workers` tasks run at a time; `lock` is a file that running local processes hold."""
        self.settings = settings
        self.workers = workers
        self._lock = lock
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, stage: Stage, work: Path, watch: Callable[[], None]) -> None:
        """Runs what is left of a stage; calls `watch` twice a second. Raises ChuanError where a task fails."""
        steps = [stage.steps[0], Pulse(str(work)), *stage.steps[1:]]
        common: dict[str, Any] = {"pipeline": steps, "tasks": stage.tasks, "logging_dir": str(work)}
        try:
            if self.settings.kind == "local":
                self._run_local(_Local(workers=self.workers, **common), watch)
            elif self.settings.kind == "ray":
                self._run_ray(common, watch)
            else:
                self._run_slurm(stage.name, common, watch)
        except (Exception, BrokenProcessPool) as error:
            raise _explain(error, stage.name, work) from error
        watch()

    def _run_local(self, executor: _Local, watch: Callable[[], None]) -> None:
        ranks = executor.get_incomplete_ranks()
        if not ranks:
            return
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.workers, multiprocessing.get_context("spawn"), _begin_worker, (str(self._lock), os.getpid())
            )
        futures = [self._pool.submit(executor._run_for_rank, rank) for rank in ranks]
        _wait(futures, watch)

    def _run_ray(self, common: dict[str, Any], watch: Callable[[], None]) -> None:
        executor = _Ray(
            workers=self.workers,
            cpus_per_task=self.settings.cpus_per_task,
            mem_per_cpu_gb=self.settings.memory_gb,
            **common,
        )
        if not executor.get_incomplete_ranks():
            return
        if importlib.util.find_spec("ray") is None:
            raise ChuanError("Ray is not installed; `pip install 'chuan[ray]'` brings it")
        pickled = Path(executor.logging_dir.resolve_paths("executor.pickle"))
        pickled.parent.mkdir(parents=True, exist_ok=True)
        pickled.write_bytes(pickle.dumps(executor))
        command = [sys.executable, "-m", "chuan.corpus.on_ray", str(pickled), str(os.getpid())]
        command += [self.settings.address or "local", str(self.workers * self.settings.cpus_per_task)]
        with (
            (pickled.parent / "ray.log").open("w") as log,
            subprocess.Popen(command, stdout=log, stderr=log) as process,
        ):
            while process.poll() is None:
                time.sleep(_TICK)
                watch()
        if left := executor.get_incomplete_ranks():
            raise RuntimeError(f"{len(left)} of {executor.world_size} tasks failed on Ray")

    def _run_slurm(self, name: str, common: dict[str, Any], watch: Callable[[], None]) -> None:
        settings = self.settings
        executor = _Slurm(
            workers=self.workers,
            time=settings.time,
            partition=settings.partition,
            cpus_per_task=settings.cpus_per_task,
            mem_per_cpu_gb=settings.memory_gb,
            qos=settings.qos,
            env_command=settings.setup or f'export PATH="{Path(sys.executable).parent}:$PATH"',
            sbatch_args=settings.sbatch,
            job_name=f"chuan-{name}",
            mail_type="NONE",
            **common,
        )
        if not executor.get_incomplete_ranks():
            return
        if shutil.which("sbatch") is None:
            raise ChuanError("sbatch is not on this machine; start the build where Slurm's commands are")
        executor.run()
        while executor.get_incomplete_ranks():
            time.sleep(_TICK)
            watch()
            if not _is_queued(str(executor.job_id)) and (left := executor.get_incomplete_ranks()):
                raise RuntimeError(f"the Slurm job {executor.job_id} ended with {len(left)} tasks undone")


def _wait(futures: list[Future[Any]], watch: Callable[[], None]) -> None:
    """Until all are done; the first that fails keeps those that have not begun from beginning."""
    pending = set(futures)
    try:
        while pending:
            done, pending = wait(pending, timeout=_TICK, return_when=FIRST_EXCEPTION)
            watch()
            for future in done:
                future.result()
    finally:
        for future in futures:
            future.cancel()
        wait(futures)


def end_with_parent(parent: int) -> None:
    """Ends this process when the one that started it does, however it ends."""

    def watch_parent() -> None:
        while os.getppid() == parent:
            time.sleep(_TICK / 2)
        os._exit(1)

    threading.Thread(target=watch_parent, daemon=True).start()


def _begin_worker(lock: str, parent: int) -> None:
    """In each local process: hold the lock as long as it lives."""
    fcntl.flock(os.open(lock, os.O_RDWR | os.O_CREAT, 0o644), fcntl.LOCK_SH)
    end_with_parent(parent)
    logger.remove()


def _is_queued(job: str) -> bool:
    asked = subprocess.run(["squeue", "-h", "-j", job], capture_output=True, text=True, check=False)
    return bool(asked.stdout.strip()) or (asked.returncode != 0 and "Invalid job id" not in asked.stderr)


def _explain(error: BaseException, stage: str, work: Path) -> ChuanError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ChuanError):
            return cause
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return ChuanError(
                f"stage {stage}: the disk of {work} is full; free some space and give the same command again: it goes "
                "on from here"
            )
        if isinstance(cause, BrokenProcessPool):
            return ChuanError(
                f"stage {stage}: a process was ended from outside, mostly for lack of memory; give the same command "
                "again with fewer workers (--set workers=1): it goes on from here"
            )
        cause = cause.__cause__ or cause.__context__
    return ChuanError(f"stage {stage} failed: {type(error).__name__}: {first_line(error)}; its logs are in {work}/logs")
