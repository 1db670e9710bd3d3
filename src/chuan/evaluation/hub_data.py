"""Benchmarks from the Hugging Face hub, in the layout that `--data` has.

In: a benchmark, subjects, splits. Out: a folder of CSV files in the hub library's cache, and the revision that the hub
resolved. AGIEval and GAOKAO-Bench are published on GitHub, not on the hub in their own form: they want a folder.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet

from chuan.checkpoints.hub import fetch_dataset
from chuan.errors import ChuanError, first_line
from chuan.staging import staged_file

_LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True)
class HubSource:
    """A dataset of one parquet file for each subject and split; `splits` are the hub's names for ours."""

    repo_id: str
    splits: dict[str, str]


SOURCES = {
    "mmlu": HubSource("cais/mmlu", {"dev": "dev", "val": "validation", "test": "test"}),
    "ceval": HubSource("ceval/ceval-exam", {"dev": "dev", "val": "val", "test": "test"}),
}


def fetch_benchmark(benchmark: str, subjects: Sequence[str], splits: Iterable[str]) -> tuple[Path, str]:
    """Downloads what is not in the cache yet; returns the folder and the revision.

    Raises ChuanError for a benchmark that is not on the hub, a hub that cannot be reached, and files of another form.
    """
    source = SOURCES.get(benchmark)
    if source is None:
        raise ChuanError(f"{benchmark} is not on the hub as its authors published it; name its folder as --data")
    wanted = [(subject, split) for split in splits for subject in subjects]
    patterns = [f"{subject}/{source.splits[split]}-*.parquet" for subject, split in wanted]
    snapshot = fetch_dataset(source.repo_id, patterns)
    # Beside the snapshots of the same dataset, by revision: another one never mixes with it.
    folder = snapshot.parent.parent / "csv" / snapshot.name
    for subject, split in wanted:
        target = folder / split / f"{subject}_{split}.csv"
        if not target.is_file():
            found = sorted(snapshot.glob(f"{subject}/{source.splits[split]}-*.parquet"))
            if not found:
                raise ChuanError(
                    f"{source.repo_id} at {snapshot.name} has no {subject}, {split}; name a folder as --data"
                )
            _write_csv(target, benchmark, found)
    return folder, snapshot.name


def _write_csv(target: Path, benchmark: str, parts: Sequence[Path]) -> None:
    """As the benchmark's authors lay it out: MMLU without a header and with letters, C-Eval with its columns."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        rows = [row for part in parts for row in pyarrow.parquet.read_table(part).to_pylist()]
        lines = list(_render_mmlu(rows) if benchmark == "mmlu" else _render_ceval(rows))
    except (pyarrow.ArrowException, KeyError, IndexError, TypeError, ValueError) as error:
        raise ChuanError(
            f"{parts[0]} is not in the form that Chuan reads ({first_line(error):.100}); name a folder as --data"
        ) from None
    with staged_file(target) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)


def _render_mmlu(rows: Iterable[dict]) -> Iterator[list[str]]:
    for row in rows:
        a, b, c, d = row["choices"]
        yield [row["question"], a, b, c, d, _LETTERS[row["answer"]]]


def _render_ceval(rows: Sequence[dict]) -> Iterator[list[str]]:
    columns = ["id", "question", *_LETTERS, *(name for name in ("answer", "explanation") if rows and name in rows[0])]
    yield columns
    for row in rows:
        yield [str(row[name]) for name in columns]
