"""Tasks of lm-evaluation-harness over local files: its own templates, with the hub's data replaced by CSVs on disk."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lm_eval
import pyarrow
import pyarrow.parquet
import yaml
from lm_eval.tasks import TaskManager

SHIPPED = Path(lm_eval.__file__).parent / "tasks"
# The template of a benchmark, the file of one subject, and the split that it scores.
TEMPLATES = {
    "mmlu": ("mmlu/default/_default_template_yaml", "mmlu/default/mmlu_{}.yaml", "test"),
    "ceval": ("ceval/_default_ceval_yaml", "ceval/ceval-valid_{}.yaml", "val"),
}


def run_harness(
    folder: Path,
    data: Path,
    benchmark: str,
    subjects: Sequence[str],
    model: str,
    limit: int | None = None,
    **model_args: Any,
) -> dict[str, list[tuple[int, list[float]]]]:
    """(number of the right letter, log-probabilities of the letters) of each question, by subject."""
    names = {f"{benchmark}-local-{subject}": subject for subject in subjects}
    for task, subject in names.items():
        write_task(folder, task, data, benchmark, subject)
    results = lm_eval.simple_evaluate(
        model=model,
        model_args=model_args,
        tasks=list(names),
        num_fewshot=5,
        limit=limit,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    found = {}
    for task, subject in names.items():
        samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
        found[subject] = [
            (int(sample["target"]), [float(reply[0]) for reply in sample["filtered_resps"]]) for sample in samples
        ]
    return found


def write_task(folder: Path, task: str, data: Path, benchmark: str, subject: str) -> None:
    """The shipped template and the shipped description of a subject, over parquet files made of the CSVs."""
    template, described, split = TEMPLATES[benchmark]
    shipped = yaml.safe_load((SHIPPED / described.format(subject)).read_text(encoding="utf-8"))
    files = {}
    for name in ("dev", split):
        source = data / ("mmlu/data" if benchmark == "mmlu" else "ceval") / name / f"{subject}_{name}.csv"
        files[name] = str(folder / f"{task}-{name}.parquet")
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(read_rows(source, benchmark)), files[name])
    (folder / f"{task}.yaml").write_text(
        yaml.safe_dump(
            {
                "include": str(SHIPPED / template),
                "task": task,
                "description": shipped["description"],
                "dataset_path": "parquet",
                "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
            }
        ),
        encoding="utf-8",
    )


def read_rows(path: Path, benchmark: str) -> list[dict[str, Any]]:
    """As the data sets of the hub have them; a newline is a newline, however a cell writes it."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [[cell.replace("\r\n", "\n") for cell in row] for row in csv.reader(file)]
    if benchmark == "ceval":
        return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    return [{"question": row[0], "choices": row[1:5], "answer": "ABCD".index(row[5])} for row in rows]
