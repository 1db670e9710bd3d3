"""The parts of our pages: a shell, tables, bars. One file of HTML that loads nothing and follows light or dark.

In: texts and numbers. Out: HTML. Knows no run and no benchmark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --line: #d8dde3; --soft: #f4f6f8; --bar: #8fa3b8;
  --own: #2f72d0; --apart: #c9a24a }
@media (prefers-color-scheme: dark) { :root { --ink: #dde3ea; --paper: #14181d; --line: #39424c; --soft: #1d232a;
  --bar: #61758a; --own: #5b9bf0; --apart: #b08c3c } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink);
  background: var(--paper) }
table { border-collapse: collapse; margin: 0.5rem 0 1rem; display: block; overflow-x: auto }
td, th { padding: 0.15rem 0.7rem; text-align: right; white-space: nowrap } td:first-child, th:first-child,
td.text, th.text { text-align: left } tr:nth-child(even) { background: var(--soft) }
svg { max-width: 100%; height: auto } svg text { fill: var(--ink); font: 12px system-ui, sans-serif }
.note { font-size: 0.9rem; opacity: 0.85 }
"""
_ROW, _LABEL, _WIDTH = 20, 260, 860


@dataclass(frozen=True)
class Bar:
    """A bar of `value` per cent; of the standard error `error`, 1.96 are drawn to each side. `kind` is its colour."""

    label: str
    value: float | None
    error: float | None = None
    kind: str = "bar"  # or own, apart


def render_page(title: str, parts: Sequence[str]) -> str:
    """A whole page."""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def render_table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A table whose first `texts` columns are texts and whose others are numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [" class='text'" if column < texts else "" for column in range(len(cells))]
        return "<tr>" + "".join(f"<{tag}{k}>{escape(c)}</{tag}>" for c, k in zip(cells, kinds, strict=True)) + "</tr>"

    return "<table>" + line(header, "th") + "\n".join(line(row, "td") for row in rows) + "</table>"


def render_note(text: str) -> str:
    """A remark under a table."""
    return f"<p class='note'>{escape(text)}</p>"


def render_bars(bars: Sequence[Bar], chance: float | None = 25.0) -> str:
    """Horizontal bars from 0 to 100 per cent with their figures; a dashed line at chance. No figure, no bar."""
    room = _WIDTH - _LABEL - 60
    height = _ROW * len(bars) + 24
    out = [f"<svg viewBox='0 0 {_WIDTH} {height}' width='{_WIDTH}' role='img'>"]
    for row, bar in enumerate(bars):
        top, middle = row * _ROW, row * _ROW + 14
        out.append(f"<text x='{_LABEL - 8}' y='{middle}' text-anchor='end'>{escape(bar.label)}</text>")
        if bar.value is None:
            continue
        end = _LABEL + room * bar.value / 100
        out.append(
            f"<rect x='{_LABEL}' y='{top + 3}' width='{end - _LABEL:.1f}' height='14' fill='var(--{bar.kind})'/>"
        )
        if bar.error:
            reach = room * 1.96 * bar.error / 100
            out.append(
                f"<path d='M{end - reach:.1f} {top + 10}H{end + reach:.1f}' stroke='var(--ink)' stroke-width='1.5'/>"
            )
            end += reach
        out.append(f"<text x='{end + 6:.1f}' y='{middle}'>{bar.value:.1f}</text>")
    if chance is not None:
        at = _LABEL + room * chance / 100
        out.append(f"<path d='M{at:.1f} 0V{height - 20}' stroke='var(--ink)' stroke-dasharray='3 4' opacity='0.6'/>")
        out.append(f"<text x='{at:.1f}' y='{height - 5}' text-anchor='middle'>chance</text>")
    return "".join([*out, "</svg>"])
