"""The parts of our pages: a shell, tables, bars. One file of HTML that loads nothing and follows light or dark.

In: texts and numbers. Out: HTML. Knows no run and no benchmark.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --line: #d8dde3; --soft: #f4f6f8; --bar: #8fa3b8;
  --own: #2f72d0; --apart: #c9a24a }
@media (prefers-color-scheme: dark) { :root { --ink: #dde3ea; --paper: #14181d; --line: #39424c; --soft: #1d232a;
  --bar: #61758a; --own: #5b9bf0; --apart: #b08c3c } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink);
  background: var(--paper); overflow-wrap: anywhere }
table { border-collapse: collapse; margin: 0.5rem 0 1rem; display: block; overflow-x: auto }
td, th { padding: 0.15rem 0.7rem 0.15rem 0; text-align: right; vertical-align: top } td { white-space: nowrap }
th { overflow-wrap: normal } td:last-child, th:last-child { padding-right: 0.3rem }
td.text, th.text { padding-left: 0.3rem; text-align: left; white-space: normal; min-width: 6.5rem }
tr:nth-child(even) { background: var(--soft) }
@media (max-width: 40rem) { table { font-size: 0.85rem } td, th { padding-right: 0.45rem } }
svg { max-width: 100%; height: auto } svg text { fill: var(--ink); font: 12px system-ui, sans-serif }
.bars { display: grid; grid-template-columns: fit-content(45%) auto 1fr; align-items: center; column-gap: 0.6rem;
  max-width: 54rem; font-size: 0.85rem; line-height: 1.25 }
.bars span { text-align: right } .bars svg { width: 100%; height: 20px }
.note { font-size: 0.9rem; opacity: 0.85 }
"""


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


def render_table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: Collection[int] = (0,)) -> str:
    """A table whose columns `texts` are texts, which a narrow screen may break; the others are numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        shown = (
            f"<{tag} class='text'>{_breakable(cell)}</{tag}>" if column in texts else f"<{tag}>{escape(cell)}</{tag}>"
            for column, cell in enumerate(cells)
        )
        return "<tr>" + "".join(shown) + "</tr>"

    return "<table>" + line(header, "th") + "\n".join(line(row, "td") for row in rows) + "</table>"


def render_note(text: str) -> str:
    """A remark under a table."""
    return f"<p class='note'>{escape(text)}</p>"


def render_bars(bars: Sequence[Bar], chance: float = 25.0) -> str:
    """Horizontal bars from 0 to 100 per cent behind their figures; a dashed line at chance. No figure, no bar.

    Only the bars are drawn: names and figures are text of the page, which keeps its size on a narrow screen.
    """
    line = f"<line x1='{chance}%' x2='{chance}%' y2='20' stroke='var(--ink)' stroke-dasharray='3 4' opacity='0.6'/>"
    out = []
    for bar in bars:
        figure = "" if bar.value is None else f"{bar.value:.1f}"
        out.append(f"<span>{_breakable(bar.label)}</span><span>{figure}</span><svg>{_draw_bar(bar)}{line}</svg>")
    legend = f"<span></span><span></span><svg><text x='{chance}%' y='14' text-anchor='middle'>chance</text></svg>"
    return "<div class='bars'>" + "\n".join([*out, legend]) + "</div>"


def _draw_bar(bar: Bar) -> str:
    if bar.value is None:
        return ""
    drawn = f"<rect y='3' width='{bar.value:.2f}%' height='14' fill='var(--{bar.kind})'/>"
    if bar.error:
        low, high = (bar.value + side * 1.96 * bar.error for side in (-1, 1))
        drawn += f"<line x1='{low:.2f}%' x2='{high:.2f}%' y1='10' y2='10' stroke='var(--ink)' stroke-width='1.5'/>"
    return drawn


def _breakable(text: str) -> str:
    """Names of files have no blanks: they may be broken behind an underscore."""
    return escape(text).replace("_", "_<wbr>")
