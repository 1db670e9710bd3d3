"""What `chuan evaluate` does.

In: the options of the command line. Out: folders of runs, tables on stdout; an exit code.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from chuan.evaluation.backends.backend import ModelFacts
from chuan.evaluation.backends.open import is_api, open_backend
from chuan.evaluation.compare import compare_runs
from chuan.evaluation.evaluate import Plan, build_plan, load_plan, run_plan
from chuan.evaluation.hub_data import SOURCES, fetch_benchmark
from chuan.evaluation.options import name_folder, read_prices, read_widths
from chuan.evaluation.report import write_report
from chuan.evaluation.show import asking_bar, print_run, print_widths


def run_evaluate(
    model: str,
    benchmark: str,
    data: str | None,
    protocol: str,
    split: str | None,
    shots: int,
    shuffle_seed: int | None,
    subjects: str | None,
    bits: str | None,
    device: str,
    dtype: str,
    output: str,
    trust_remote_code: bool = False,
    mode: str = "base",
    base_url: str | None = None,
    concurrency: int = 4,
    prices: str | None = None,
) -> int:
    """Every benchmark at every width of weights: a folder a run, and a table a benchmark."""
    paid = read_prices(prices)
    if is_api(model):
        mode = "chat"  # there is nothing else to ask it by
    names = list(dict.fromkeys(name.strip() for name in benchmark.split(",")))
    widths = read_widths(bits)
    plans = [
        build_plan(name, protocol, split, shots, shuffle_seed, subjects, Path(data or "."), mode) for name in names
    ]
    if data is None:
        plans = [fetch_data(plan) for plan in plans]
    # Before a model is loaded: what is wrong with the data is soon known.
    loaded = [(plan, load_plan(plan)) for plan in plans]
    runs: dict[str, list[tuple[dict[str, Any], Path]]] = {name: [] for name in names}
    for width in widths:
        backend = open_backend(
            model, width, device, dtype, trust_remote_code, base_url, concurrency, Path(output) / "replies.jsonl"
        )
        for plan, asks in loaded:
            folder = Path(output) / name_run(plan, backend.facts)
            with asking_bar(f"{plan.benchmark}, {plan.split}") as progress:
                facts = run_plan(plan, asks, backend, folder, progress)
            write_report(folder)
            runs[plan.benchmark].append((facts, folder))
            print_run(facts, paid)
            print(f"{folder}\n")
        del backend  # before the next width is loaded
    for of_benchmark in runs.values():
        (first, folder), *others = of_benchmark
        if others and first["accuracy"]["average"]["value"] is not None:
            print_widths(first, [(facts, compare_runs(folder, other)) for facts, other in others])
    return 0


def fetch_data(plan: Plan) -> Plan:
    """The plan with its benchmark's files from the hub."""
    folder, revision = fetch_benchmark(plan.benchmark, plan.subjects, dict.fromkeys(("dev", plan.split)))
    return replace(plan, data=folder, source=f"hub: {SOURCES[plan.benchmark].repo_id}", revision=revision)


def name_run(plan: Plan, facts: ModelFacts) -> str:
    """A folder's name that tells runs apart; the plan inside tells the rest."""
    seed = f"seed{plan.seed}" if plan.seed is not None else None
    mode = plan.mode if plan.mode != "base" else None
    asked = "-".join(part for part in (plan.split, plan.protocol, mode, f"{plan.shots}shot", seed) if part)
    return name_folder(plan.benchmark, asked, facts.model, facts.bits, facts.dtype)
