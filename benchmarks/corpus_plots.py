"""The plots of a corpus' report as pictures for the documents.

python benchmarks/corpus_plots.py OUTPUT/report.json docs/corpus_report.png
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from chuan.json_file import read_json

_SHOWN = 14  # reasons
_COLOURS = {"zh": "#c1121f", "en": "#2a6f97"}


def main() -> None:
    report = read_json(Path(sys.argv[1]))
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    reasons, lengths, mixture = figure.subplots(1, 3, width_ratios=(1.3, 1, 1))
    draw_reasons(reasons, report)
    draw_lengths(lengths, report)
    draw_mixture(mixture, report)
    figure.savefig(sys.argv[2], dpi=90)


def draw_reasons(axes: Any, report: dict[str, Any]) -> None:
    found = list(report["reasons"].items())[:_SHOWN]
    axes.barh([name for name, _ in found][::-1], [row["documents"] for _, row in found][::-1], color="#8d99ae")
    axes.set(title="documents that left", xscale="log")
    axes.tick_params(labelsize=8)


def draw_lengths(axes: Any, report: dict[str, Any]) -> None:
    """`lengths` counts documents by language and the power of two that is just above their characters."""
    by_language: dict[str, dict[int, int]] = defaultdict(dict)
    for language, power, count in report["lengths"]:
        by_language[language][int(power)] = count
    for language, counts in sorted(by_language.items()):
        powers = sorted(counts)
        axes.plot(powers, [counts[power] for power in powers], label=language, color=_COLOURS.get(language))
    ticks = range(5, 18, 4)
    axes.set(title="documents by characters", xticks=ticks, xticklabels=[f"{2**power:,}" for power in ticks])
    axes.legend()


def draw_mixture(axes: Any, report: dict[str, Any]) -> None:
    """Millions of training tokens by the first words of the sources' names and by language."""
    tokens: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for group in report["shards"]["splits"]["train"]["groups"]:
        kind = next(kind for kind in ("prose", "docs", "chat", "") if kind in group["source"])
        tokens[kind or "other"][group["language"]] += group["tokens"]
    left = dict.fromkeys(tokens, 0.0)
    for language in report["shards"]["languages"]:
        sizes = [tokens[kind][language] / 1e6 for kind in tokens]
        axes.bar(list(tokens), sizes, bottom=list(left.values()), label=language, color=_COLOURS.get(language))
        left = {kind: left[kind] + size for kind, size in zip(tokens, sizes, strict=True)}
    axes.set(title="million tokens to train on")
    axes.legend()


if __name__ == "__main__":
    main()
