"""Whether two runs differ: paired, question by question.

In: two runs of the same questions with the same prompts. Out: McNemar's exact test and a bootstrap interval of the
difference, with the questions whose outcome flipped. Sources: McNemar 1947;
Efron and Tibshirani 1993, chapter 13.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any

import numpy as np

from chuan.errors import ChuanError
from chuan.evaluation.runs import read_questions, read_run

Row = dict[str, Any]
RESAMPLES = 10_000


@dataclass(frozen=True)
class Comparison:
    """Counts over the questions that both runs scored; `difference` and `interval` are B minus A, shares of one."""

    names: tuple[str, str]
    kind: str
    both_right: int
    only_a: int
    only_b: int
    both_wrong: int
    difference: float
    p_value: float
    interval: tuple[float, float]
    seed: int
    flips: dict[str, tuple[list[str], list[str]]]  # by subject: ids that only A, that only B got right

    @property
    def questions(self) -> int:
        return self.both_right + self.only_a + self.only_b + self.both_wrong


def compare_runs(a: Path, b: Path, seed: int = 0) -> Comparison:
    """Raises ChuanError where the runs asked different questions, or the same in other words."""
    run_a, run_b = read_run(a), read_run(b)
    pairs = _pair(a, b)
    kind = (run_a.facts["accuracy"].get("average") or {}).get("kind", "micro")
    flips: dict[str, tuple[list[str], list[str]]] = {}
    strata: dict[str, list[tuple[bool, bool]]] = {}
    for row, other in pairs:
        strata.setdefault(row["subject"], []).append((row["correct"], other["correct"]))
        if row["correct"] != other["correct"]:
            flips.setdefault(row["subject"], ([], []))[0 if row["correct"] else 1].append(row["id"])
    outcomes = [outcome for part in strata.values() for outcome in part]
    only_a, only_b = outcomes.count((True, False)), outcomes.count((False, True))
    if kind == "points":
        difference, interval = _compare_points(pairs, seed)
    else:
        groups = list(strata.values()) if kind == "macro" else [outcomes]
        difference = float(np.mean([np.mean([right_b - right_a for right_a, right_b in group]) for group in groups]))
        interval = _bootstrap(groups, seed)
    return Comparison(
        (run_a.name, run_b.name),
        kind,
        outcomes.count((True, True)),
        only_a,
        only_b,
        outcomes.count((False, False)),
        difference,
        mcnemar(only_a, only_b),
        interval,
        seed,
        flips,
    )


def mcnemar(only_a: int, only_b: int) -> float:
    """The two-sided exact p-value: how often a fair coin would be so uneven on the questions that flipped."""
    flipped = only_a + only_b
    tail = sum(comb(flipped, count) for count in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**flipped)


def _bootstrap(groups: Sequence[Sequence[tuple[bool, bool]]], seed: int) -> tuple[float, float]:
    """The middle 95 % of the mean difference when the questions of each group are drawn again with replacement.

    Drawing n pairs from those that are there is a multinomial draw of how many of them are of each outcome.
    """
    generator = np.random.default_rng(seed)
    means = np.zeros(RESAMPLES)
    for group in groups:
        n = len(group)
        shares = np.array([group.count((True, False)), group.count((False, True)), 0]) / n
        shares[2] = max(0.0, 1 - shares[0] - shares[1])
        draws = generator.multinomial(n, shares, size=RESAMPLES)
        means += (draws[:, 1] - draws[:, 0]) / n
    low, high = np.percentile(means / len(groups), [2.5, 97.5])
    return float(low), float(high)


def _compare_points(pairs: Sequence[tuple[Row, Row]], seed: int) -> tuple[float, tuple[float, float]]:
    """The difference in the share of points, and the middle 95 % of it when questions are drawn again as above."""
    table = np.array([(other["points"] - row["points"], row["possible"]) for row, other in pairs])
    share = np.full(len(table), 1 / len(table))
    drawn = np.random.default_rng(seed).multinomial(len(table), share, size=RESAMPLES) @ table
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    return float(table[:, 0].sum() / table[:, 1].sum()), (float(low), float(high))


def _pair(a: Path, b: Path) -> list[tuple[Row, Row]]:
    of_a, of_b = ({_key(row): row for row in read_questions(folder)} for folder in (a, b))
    if of_a.keys() != of_b.keys():
        raise ChuanError(
            f"{a} and {b} asked different questions; compare runs of the same benchmark, split and subjects"
        )
    changed = sum(of_a[key]["prompt_sha256"] != of_b[key]["prompt_sha256"] for key in of_a)
    if changed:
        raise ChuanError(f"{a} and {b} asked {changed} questions in other words; compare runs of one protocol and seed")
    pairs = [
        (of_a[key], of_b[key]) for key in of_a if of_a[key]["correct"] is not None and of_b[key]["correct"] is not None
    ]
    if not pairs:
        raise ChuanError(f"{a} and {b} have no scored questions; the answers were not at hand")
    return pairs


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return (row["benchmark"], row["subject"], str(row["id"]))
