"""The plot of `cpu_inference.py`: ratios with their bars, and how cost grows. `cpu_plot.py PICTURE.png < figures.json`.

Runs in a Python that has matplotlib, which need not be Chuan's.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BLUE, GREY, RED = "#2a6f97", "#8d99ae", "#c1121f"


def main() -> None:
    figures = json.load(sys.stdin)
    plt.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True})
    plt.rcParams.update({"grid.color": "#e5e5e5", "axes.axisbelow": True})
    figure = plt.figure(figsize=(9.6, 3.6), layout="constrained")
    grid = figure.add_gridspec(3, 2, width_ratios=(1.5, 1))
    draw_ratios(figure.add_subplot(grid[:, 0]), figures["ratios"])
    if figures["curves"]:
        draw_curves([figure.add_subplot(grid[row, 1]) for row in range(3)], figures["curves"])
    figure.savefig(sys.argv[1], dpi=110)


def draw_ratios(axes: Any, ratios: list[dict[str, Any]]) -> None:
    """A bar a comparison; a red tick is what was asked for."""
    places = range(len(ratios), 0, -1)
    for place, found in zip(places, ratios, strict=True):
        reached = found["bar"] is None or found["ratio"] >= found["bar"]
        axes.barh(place, found["ratio"], color=BLUE if reached else GREY, height=0.6)
        axes.plot((found["least"], found["most"]), (place, place), color="black", linewidth=0.8)
        axes.text(max(found["most"], found["bar"] or 0), place, f"  {found['ratio']:.2f} x", va="center")
        if found["bar"] is not None:
            axes.plot((found["bar"],) * 2, (place - 0.4, place + 0.4), color=RED, linewidth=1.6)
    axes.axvline(1, color="black", linewidth=0.6)
    axes.set_yticks(list(places), [found["label"] for found in ratios])
    axes.grid(visible=False, axis="y")
    ends = [max(found["most"], found["bar"] or 0) for found in ratios]
    axes.set_xlim(0, max([*ends, 1]) * 1.2)
    axes.set_title("Chuan's speed as a multiple of the peer's (red: the bar)", loc="left", fontsize=8)


def draw_curves(panels: list[Any], curves: dict[str, Any]) -> None:
    """Decode time, prefill time, memory."""
    titles = {
        "decode": ("ms a token, by tokens of context", 1e3),
        "prefill": ("s to read a prompt, by its tokens", 1),
        "memory": ("GB, by sequences of 256 tokens", 1e-9),
    }
    for axes, (name, (title, factor)) in zip(panels, titles.items(), strict=True):
        points = sorted((int(key), value * factor) for key, value in curves[name].items())
        axes.plot(*zip(*points, strict=True), color=BLUE, marker="o", markersize=3, linewidth=1.2)
        axes.set_ylim(bottom=0)
        axes.set_title(title, loc="left", fontsize=8)


if __name__ == "__main__":
    main()
