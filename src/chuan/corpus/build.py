"""A corpus built: the recipe's parts one after the other, each from the folder that the one before left.

In: a recipe. Out: `OUTPUT/shards`, `report.json` and `report.html`; what lies between is in `OUTPUT/work`. The same
recipe on the same files gives the same bytes, however many workers run and however often the build was ended and begun
again. Knows the order of the parts, and nothing of what they do.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loguru import logger

from chuan.corpus.clean import clean_stages
from chuan.corpus.decontaminate import decontaminate_stages
from chuan.corpus.dedup import dedup_stages
from chuan.corpus.executors import Runner
from chuan.corpus.mixture import weigh
from chuan.corpus.recipe import CorpusRecipe, count_workers
from chuan.corpus.report import write_report
from chuan.corpus.sources import SourceFile, assign_pieces, find_files
from chuan.corpus.stages import Stage
from chuan.corpus.tally import tally_stages
from chuan.corpus.tokenise import token_stages
from chuan.errors import ChuanError
from chuan.recipes import load_recipe, render_recipe
from chuan.staging import staged_file

# What changes nothing in the output: where things lie, and who works.
_FREE = ("output", "data", "workers", "executor", "max_bad_share")


@dataclass
class Part:
    """A table of the recipe: its stages, and the folder of documents that it leaves, if it leaves one."""

    name: str
    stages: list[Stage]
    kept: Path | None = None


@dataclass(frozen=True)
class StageProgress:
    """How far a stage is. `size` is in bytes of text that its tasks have seen."""

    name: str
    done: int
    tasks: int
    documents: int
    size: int
    seconds: float


@dataclass
class _Watch:
    """Looks at the files that tasks leave, and tells whoever wants to know."""

    stage: Stage
    folder: Path
    tell: Callable[[StageProgress], None]
    began: float = field(default_factory=time.monotonic)

    def __call__(self) -> None:
        pulses = list(_load_all(self.folder / "pulse"))
        documents, size = (sum(pulse[key] for pulse in pulses) for key in ("documents", "bytes"))
        done = len(list((self.folder / "completions").glob("*")))
        self.tell(
            StageProgress(self.stage.name, done, self.stage.tasks, documents, size, time.monotonic() - self.began)
        )


def build_corpus(recipe: CorpusRecipe, progress: Callable[[StageProgress], None] = lambda _: None) -> dict[str, Any]:
    """Builds what is not built yet; returns the report.

    Raises ChuanError for sources that match no file, a folder that holds a build of another recipe or is being written,
    too many bad records, a full disk, and a stage that fails.
    """
    output = Path(os.path.abspath(os.path.expanduser(recipe.output)))
    files = find_files(recipe.sources, recipe.data)
    if not sum(file.size for file in files):
        raise ChuanError(f"the {len(files)} files of the sources are all empty; nothing to build from")
    parts = plan_parts(recipe, files, output)
    with _locked(output) as workers_lock:
        _claim(recipe, files, output)
        logger.remove()
        sink = logger.add(output / "work" / "build.log", format="{time} {level} {message}")
        try:
            with Runner(recipe.executor, count_workers(recipe), workers_lock) as runner:
                for part in parts:
                    for stage in part.stages:
                        _run_stage(runner, stage, output / "work" / "logs" / stage.name, progress)
                    if part.name == "clean":
                        _check_bad(recipe, output)
                    if part.kept is not None and not any(part.kept.glob("*.jsonl.zst")):
                        rejected = part.kept.parent / "rejected"
                        raise ChuanError(f"no document is left after {part.name}; {rejected} has each with its reason")
        finally:
            logger.remove(sink)
        return write_report(recipe, files, output, [stage.name for part in parts for stage in part.stages])


def plan_parts(recipe: CorpusRecipe, files: Sequence[SourceFile], output: Path) -> list[Part]:
    """The parts that a recipe asks for, in their order."""
    work = output / "work"
    pieces = assign_pieces(files, recipe.tasks)
    parts = [Part("clean", clean_stages(recipe.clean, pieces, str(work / "clean")), work / "clean" / "kept")]
    kept = work / "clean" / "kept"
    if recipe.dedup is not None:
        stages = dedup_stages(recipe.dedup, str(kept), str(work / "dedup"), recipe.tasks)
        kept = work / "dedup" / "kept"
        parts.append(Part("dedup", stages, kept))
    if recipe.decontaminate is not None:
        stages = decontaminate_stages(recipe.decontaminate, str(kept), str(work / "decontaminate"), recipe.tasks)
        kept = work / "decontaminate" / "kept"
        parts.append(Part("decontaminate", stages, kept))
    if recipe.tokens is not None:
        languages = sorted({*recipe.clean.language.keep, *(s.language for s in recipe.sources if s.language)})
        weights = weigh(recipe.mixture, recipe.sources, languages)
        folders = str(kept), str(work / "tokens"), str(output / "shards")
        stages = token_stages(recipe.tokens, weights, _fixed(recipe), *folders, recipe.tasks)
        parts.append(Part("tokens", stages))
    parts.append(Part("report", tally_stages(str(work), str(kept), str(work / "tally"), recipe.tasks)))
    return parts


def _run_stage(runner: Runner, stage: Stage, folder: Path, progress: Callable[[StageProgress], None]) -> None:
    watch = _Watch(stage, folder, progress)
    try:
        runner.run(stage, folder, watch)
    finally:
        # A build that is resumed adds to the time of those before it.
        path = folder / "seconds.json"
        before = json.loads(path.read_text()) if path.exists() else 0.0
        if folder.is_dir():
            path.write_text(json.dumps(before + time.monotonic() - watch.began))


def _claim(recipe: CorpusRecipe, files: Sequence[SourceFile], output: Path) -> None:
    """Writes the recipe and the list of its files, or compares them with those of the build that is there."""
    path, inputs = output / "recipe.toml", output / "work" / "inputs.json"
    listed = [[file.source.name, file.name, file.size] for file in files]
    if path.exists():
        before = _fixed(load_recipe(path, CorpusRecipe))
        if (key := _first_difference(before, _fixed(recipe))) is not None:
            raise ChuanError(
                f"{output} holds a build of another recipe ({key} differs); choose another output or remove it"
            )
        if inputs.exists() and json.loads(inputs.read_text(encoding="utf-8")) != listed:
            raise ChuanError(f"{output} was built from other files than the sources now have; choose another output")
        return
    if others := [entry.name for entry in output.iterdir() if entry.name != "work"]:
        raise ChuanError(f"{output} is not empty ({others[0]}), and no build of a corpus; choose another output")
    with staged_file(inputs) as temporary:
        temporary.write_text(json.dumps(listed, ensure_ascii=False), encoding="utf-8")
    with staged_file(path) as temporary:
        temporary.write_text(render_recipe(recipe), encoding="utf-8")


def _fixed(recipe: CorpusRecipe) -> dict[str, Any]:
    """What the output depends on."""
    return recipe.model_dump(mode="json", exclude=set(_FREE), exclude_none=True)


def _first_difference(before: Any, now: Any, key: str = "") -> str | None:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            found = _first_difference(before.get(name), now.get(name), f"{key}.{name}" if key else name)
            if found is not None:
                return found
        return None
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for i, pair in enumerate(zip(before, now, strict=True)):
            found = _first_difference(*pair, f"{key}.{i}")
            if found is not None:
                return found
        return None
    return None if before == now else key


def _check_bad(recipe: CorpusRecipe, output: Path) -> None:
    """Refuses to go on where more of a source is broken than the recipe allows."""
    folder = output / "work" / "clean"
    totals: dict[str, list[int]] = {}
    for counts in _load_all(folder / "counts"):
        for source, count in counts.items():
            total = totals.setdefault(source, [0, 0])
            total[0] += count["bad"]
            total[1] += count["documents"]
    for source, (bad, documents) in sorted(totals.items()):
        share = bad / max(1, bad + documents)
        if bad and share > recipe.max_bad_share:
            raise ChuanError(
                f"source {source}: {bad:,} of {bad + documents:,} records are bad ({share:.1%}, max_bad_share is "
                f"{recipe.max_bad_share:.1%}); {folder / 'bad'} has them with what is wrong; mend the files, or "
                "raise max_bad_share"
            )


@contextmanager
def _locked(output: Path) -> Iterator[Path]:
    """Holds the folder against other builds, and waits for the processes of one that was killed a moment ago."""
    work = output / "work"
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = os.open(work / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ChuanError(f"{output} cannot be written: {error.strerror}; choose another output") from None
    workers_lock = work / ".workers"
    try:
        _take(lock, 0.0, output)
        workers = os.open(workers_lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _take(workers, 10.0, output)
        finally:
            os.close(workers)
        yield workers_lock
    finally:
        os.close(lock)


def _take(descriptor: int, patience: float, output: Path) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise ChuanError(f"another build is writing {output}; wait for it, or choose another output") from None
            time.sleep(0.1)


def _load_all(folder: Path) -> Iterator[Any]:
    """The JSON files of a folder; one that is just being written is passed over."""
    for path in sorted(folder.glob("*.json")):
        try:
            yield json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, FileNotFoundError):
            continue
