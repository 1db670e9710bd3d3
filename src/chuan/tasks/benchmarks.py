"""The benchmarks that Chuan knows, and the one door to their questions.

In: the name of a benchmark and the folder of its data. Out: `Question`s. Knows no prompt, no model and no score; where
data come from is the business of whoever names the folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from chuan.errors import ChuanError
from chuan.tasks import agieval, ceval, gaokao, mmlu
from chuan.tasks.question import Question, Subject


@dataclass(frozen=True)
class Benchmark:
    """A name, its subjects by name in the order of its authors, its splits, and how one file of it is read."""

    name: str
    subjects: dict[str, Subject]
    splits: tuple[str, ...]
    load_subject: Callable[[Path, str, str], list[Question]]


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in [
        Benchmark("ceval", ceval.SUBJECTS, ceval.SPLITS, ceval.load_subject),
        Benchmark("mmlu", mmlu.SUBJECTS, mmlu.SPLITS, mmlu.load_subject),
        Benchmark("agieval", agieval.SUBJECTS, agieval.SPLITS, agieval.load_subject),
        Benchmark("agieval-v1", agieval.SUBJECTS, agieval.SPLITS, partial(agieval.load_subject, version="agieval-v1")),
        Benchmark("gaokao", gaokao.SUBJECTS, gaokao.SPLITS, gaokao.load_subject),
    ]
}


def find_benchmark(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise ChuanError(f"no benchmark is called {name}; there are {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def load_questions(
    benchmark: str, data: str | Path, subjects: Sequence[str] | None = None, split: str = "test"
) -> list[Question]:
    """The questions of a split, subject by subject in the order asked for (all of them in the authors' order).

    `data` is the folder that holds the benchmark, or the benchmark's own. Demonstrations are the split `dev`. Raises
    ChuanError for a name that is unknown and for files that are missing or damaged.
    """
    known = find_benchmark(benchmark)
    if split not in known.splits:
        raise ChuanError(f"{benchmark} has no split {split}; it has {', '.join(known.splits)}")
    names = list(known.subjects) if subjects is None else list(subjects)
    for name in names:
        if name not in known.subjects:
            raise ChuanError(f"{benchmark} has no subject {name}; it has {', '.join(known.subjects)}")
    return [question for name in names for question in known.load_subject(Path(data), name, split)]
