"""What `chuan leaderboard` prints.

In: the options of the command line. Out: stdout; an exit code.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from chuan.errors import ChuanError
from chuan.evaluation.board_text import print_boards, render_html, render_json, render_markdown
from chuan.evaluation.compare import RESAMPLES, Comparison, compare_runs
from chuan.evaluation.leaderboard import build_boards
from chuan.evaluation.published import load_published
from chuan.evaluation.runs import find_runs

_RENDERERS = {"markdown": render_markdown, "html": render_html, "json": render_json}


def run_leaderboard(
    runs: str | None,
    benchmark: str | None,
    sort: str,
    columns: str | None,
    min_size: float | None,
    max_size: float | None,
    form: str,
) -> int:
    """The published tables beside the runs below a folder."""
    if form != "terminal" and form not in _RENDERERS:
        raise ChuanError(f"--format {form} is not known; there are terminal, {', '.join(_RENDERERS)}")
    own = find_runs(Path(runs)) if runs is not None else []
    names: Sequence[str] | None = [name.strip() for name in columns.split(",")] if columns else None
    boards = build_boards(load_published(), own, benchmark, sort, names, min_size, max_size)
    if form == "terminal":
        print_boards(boards)
    else:
        sys.stdout.write(_RENDERERS[form](boards))
    return 0


def run_compare(a: str, b: str, seed: int) -> int:
    """Two runs, question by question."""
    print(render_comparison(compare_runs(Path(a), Path(b), seed)))
    return 0


def render_comparison(comparison: Comparison) -> str:
    """Lines for people: counts, the tests, the flips of each subject."""
    a, b = comparison.names
    low, high = comparison.interval
    lines = [
        f"A: {a}",
        f"B: {b}",
        f"{comparison.questions:,} questions: both right {comparison.both_right:,}, only A {comparison.only_a:,}, "
        f"only B {comparison.only_b:,}, both wrong {comparison.both_wrong:,}",
        f"B - A, {comparison.kind}: {100 * comparison.difference:+.2f} points; 95 % of {RESAMPLES:,} paired resamples "
        f"(seed {comparison.seed}): {100 * low:+.2f} to {100 * high:+.2f}",
        f"McNemar, exact, two-sided: p = {comparison.p_value:.3g}",
    ]
    if comparison.flips:
        lines.append("flips by subject:")
    for subject, (only_a, only_b) in sorted(comparison.flips.items()):
        lines.append(f"  {subject}: only A {', '.join(only_a) or '-'}; only B {', '.join(only_b) or '-'}")
    return "\n".join(lines)
