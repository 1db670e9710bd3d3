"""How a build grows with its input: a quarter, a half and all of a corpus; processor seconds and peak memory by stage.

    python benchmarks/corpus_growth.py FOLDER TOKENIZER [--questions FOLDER] [--work build/growth] [--workers 1]
        [--plot docs/corpus_growth.png]

FOLDER holds the files of recipes/corpus-mini.toml. A document is in a quarter or a half by the hash of its line, so
that every source shrinks alike. Memory is that of the largest process up to the end of a stage. What was built is not
built again. Needs about the processor seconds of 1.75 builds.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import xxhash
import zstandard
from machine import describe_machine
from matplotlib.figure import Figure

from chuan.corpus.build import build_corpus
from chuan.corpus.recipe import load_corpus_recipe
from chuan.staging import staged_file

RECIPE = Path(__file__).parents[1] / "recipes" / "corpus-mini.toml"
SHARES = (1, 2, 4)  # quarters
_BENCHMARKS = ("ceval", "mmlu", "agieval", "gaokao")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of the sources")
    parser.add_argument("tokenizer", help="the folder of a tokenizer")
    parser.add_argument("--questions", help="the folder of the benchmarks' data; without, no decontamination")
    parser.add_argument("--work", type=Path, default=Path("build/growth"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--plot", type=Path, help="a .png of the growth")
    given = parser.parse_args()
    reports = {}
    for quarters in SHARES:
        data = thin_out(given.data, given.work / f"data-{quarters}", quarters)
        settings = [
            f"data={data}",
            f"output={given.work / f'corpus-{quarters}'}",
            f"tokens.tokenizer={given.tokenizer}",
            f"workers={given.workers}",
        ]
        if given.questions:
            named = ", ".join(f'{{name = "{name}", data = "{given.questions}"}}' for name in _BENCHMARKS)
            settings.append(f"decontaminate={{benchmarks = [{named}]}}")
        reports[quarters] = build_corpus(load_corpus_recipe(RECIPE, settings))
    print(describe_machine(), "\n")
    print_tables(reports)
    if given.plot:
        draw(reports, given.plot)


def thin_out(source: Path, target: Path, quarters: int) -> Path:
    """The folder with so many quarters of the documents; the whole of it is the source itself."""
    if quarters == 4:
        return source
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.jsonl.zst")):
        if (target / path.name).exists():
            continue
        with staged_file(target / path.name) as temporary:
            copy_share(path, temporary, quarters)
    return target


def copy_share(source: Path, target: Path, quarters: int) -> None:
    with zstandard.open(source, "rb") as lines, zstandard.open(target, "wb") as kept:
        for line in io.BufferedReader(lines):
            if xxhash.xxh3_64_intdigest(line) % 4 < quarters:
                kept.write(line)


def print_tables(reports: dict[int, dict[str, Any]]) -> None:
    print(
        "| input | documents | MB | processor seconds | MB a second a core | peak MB a process |\n" + "|---" * 6 + "|"
    )
    for quarters, report in reports.items():
        size, seconds = report["total"]["in"]["bytes"] / 1e6, total_seconds(report)
        cells = [f"{report['total']['in']['documents']:,}", f"{size:.0f}", f"{seconds:.0f}", f"{size / seconds:.2f}"]
        print(f"| {quarters}x | " + " | ".join([*cells, f"{peak(report):.0f}"]) + " |")
    names = [stage["name"] for stage in reports[SHARES[-1]]["stages"]]
    header = " | ".join(f"{quarters}x: seconds | MB" for quarters in reports)
    print(f"\n| stage | {header} |\n|---|" + "---|" * 2 * len(reports))
    for i, name in enumerate(names):
        stages = [report["stages"][i] for report in reports.values()]
        print(
            f"| {name} | " + " | ".join(f"{s['cpu_seconds']:.0f} | {s['peak_memory'] / 1e6:.0f}" for s in stages) + " |"
        )


def total_seconds(report: dict[str, Any]) -> float:
    return sum(stage["cpu_seconds"] for stage in report["stages"])


def peak(report: dict[str, Any]) -> float:
    return max(stage["peak_memory"] for stage in report["stages"]) / 1e6


def draw(reports: dict[int, dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(7, 2.4), layout="constrained")
    seconds, memory = figure.subplots(1, 2)
    sizes = [report["total"]["in"]["bytes"] / 1e6 for report in reports.values()]
    seconds.plot(sizes, [total_seconds(report) for report in reports.values()], marker="o", color="#2a6f97")
    seconds.set(title="processor seconds", xlabel="MB of text in", xlim=(0, None), ylim=(0, None))
    memory.plot(sizes, [peak(report) for report in reports.values()], marker="o", color="#2a6f97")
    memory.set(title="peak MB of a process", xlabel="MB of text in", xlim=(0, None), ylim=(0, None))
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
