"""What `chuan evaluate` does.

In: the options of the command line. Out: folders of runs, tables on stdout; an exit code.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from chuan.errors import ChuanError
from chuan.evaluation.backends.backend import ModelFacts
from chuan.evaluation.backends.open import open_backend
from chuan.evaluation.compare import compare_runs
from chuan.evaluation.evaluate import Plan, build_plan, run_plan
from chuan.evaluation.report import write_report
from chuan.evaluation.show import asking_bar, print_run, print_widths


def run_evaluate(
    model: str,
    benchmark: str,
    data: str,
    protocol: str,
    split: str | None,
    shots: int,
    shuffle_seed: int | None,
    subjects: str | None,
    bits: str | None,
    device: str,
    dtype: str,
    output: str,
) -> int:
    """Every benchmark at every width of weights: a folder a run, and a table a benchmark."""
    names = [name.strip() for name in benchmark.split(",")]
    widths = read_widths(bits)
    plans = [build_plan(name, protocol, split, shots, shuffle_seed, subjects, Path(data)) for name in names]
    runs: dict[str, list[tuple[dict[str, Any], Path]]] = {name: [] for name in names}
    for width in widths:
        backend = open_backend(model, width, device, dtype)
        for plan in plans:
            folder = Path(output) / name_run(plan, backend.facts)
            with asking_bar(f"{plan.benchmark}, {plan.split}") as progress:
                facts = run_plan(plan, backend, folder, progress)
            write_report(folder)
            runs[plan.benchmark].append((facts, folder))
            print_run(facts)
            print(f"{folder}\n")
        del backend  # before the next width is loaded
    for of_benchmark in runs.values():
        (first, folder), *others = of_benchmark
        if others and first["accuracy"]["average"]["value"] is not None:
            print_widths(first, [(facts, compare_runs(folder, other)) for facts, other in others])
    return 0


def read_widths(bits: str | None) -> list[int | None]:
    """`16,8,4` to numbers; None is what the files have."""
    if bits is None:
        return [None]
    if not re.fullmatch(r"(16|8|4)(,(16|8|4))*", bits):
        raise ChuanError(f"--bits {bits} is not known; give 16, 8, 4 or several with commas")
    return list(dict.fromkeys(int(width) for width in bits.split(",")))


def name_run(plan: Plan, facts: ModelFacts) -> str:
    """A folder's name that tells runs apart; the plan inside tells the rest."""
    model = re.sub(r"[^\w.-]+", "-", facts.model).strip("-.") or "model"
    parts = [plan.benchmark, plan.split, plan.protocol, f"{plan.shots}shot", model, str(facts.dtype)]
    if plan.seed is not None:
        parts.insert(4, f"seed{plan.seed}")
    return "-".join(parts)
