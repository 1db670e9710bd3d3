"""The page of a report: tables and plots in one file of HTML.

In: what `chuan.corpus.report` gathered. Out: the page; its plots are SVG inside it, and it loads nothing.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape
from typing import Any

import matplotlib
from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem } td, th { padding: 0.15rem 0.7rem; text-align: right }
td:first-child, th:first-child { text-align: left } tr:nth-child(even) { background: #f4f6f8 }
pre { background: #f4f6f8; padding: 0.6rem; white-space: pre-wrap; overflow-wrap: anywhere } svg { max-width: 100% }
summary { cursor: pointer } .big { font-size: 1.2rem }
"""
_COLOURS = {
    "kept": "#3b7dd8",
    "language": "#b0b7c3",
    "rule": "#e0a030",
    "duplicate": "#9060c0",
    "contaminated": "#c03050",
}


def render_page(report: dict[str, Any]) -> str:
    """A whole page."""
    total = report["total"]
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Corpus report</title>",
        f"<style>{_STYLE}</style><h1>Corpus report</h1>",
        f"<p class='big'>{total['in']['documents']:,} documents ({_mb(total['in']['bytes'])}) came in; "
        f"{total['kept']['documents']:,} ({_mb(total['kept']['bytes'])}) stayed, "
        f"{total['rejected']['documents']:,} left, {total['bad']:,} records could not be read.</p>",
        "<h2>What left, and why</h2>",
        _reasons_plot(report),
        _table(
            ["reason", "documents", "characters", "MB"],
            [
                [reason, row["documents"], row["characters"], _mb(row["bytes"])]
                for reason, row in report["reasons"].items()
            ],
        ),
        _cut(report),
        "<h2>Sources</h2>",
        _sources_plot(report),
        _sources_table(report),
        "<h2>Languages and lengths</h2>",
        _table(
            ["language", "kept documents", "kept characters", "kept MB", "rejected documents"],
            [
                [name, row.get("documents", 0), row.get("characters", 0), _mb(row.get("bytes", 0)),
                 row.get("rejected_documents", 0)]
                for name, row in sorted(report["languages"].items(), key=lambda item: -item[1].get("documents", 0))
            ],
        ),
        _lengths_plot(report),
        _changes(report),
        _shards(report),
        "<h2>Bad records</h2>",
        _bad_records(report),
        "<h2>Samples of what left</h2>",
        _samples(report),
        "<h2>Time</h2>",
        _table(
            ["stage", "seconds", "CPU seconds", "MB of text", "MB a CPU second", "peak memory of a task"],
            [
                [row["name"], f"{row['seconds']:.1f}", f"{row['cpu_seconds']:.1f}", _mb(row["bytes"]),
                 f"{row['mb_per_cpu_second']:.2f}", _mb(row["peak_memory"])]
                for row in report["stages"]
            ],
        ),
        f"<h2>Recipe</h2><details><summary>as resolved</summary><pre>{escape(report['recipe'])}</pre></details></html>",
    ]  # fmt: skip
    return "\n".join(part for part in parts if part)


def _sources_table(report: dict[str, Any]) -> str:
    rows = []
    for name, source in report["sources"].items():
        left = sum(row["documents"] for row in source["rejected"].values())
        share = f"{source['kept']['bytes'] / source['in']['bytes']:.1%}" if source["in"]["bytes"] else ""
        top = ", ".join(
            f"{reason} {row['documents']:,}"
            for reason, row in sorted(source["rejected"].items(), key=lambda item: -item[1]["documents"])[:3]
        )
        rows.append(
            [name, source["in"]["documents"], _mb(source["in"]["bytes"]), source["bad"], left,
             source["kept"]["documents"], _mb(source["kept"]["bytes"]), share, top]
        )  # fmt: skip
    header = ["source", "documents in", "MB in", "bad", "left", "kept", "MB kept", "of its MB", "most frequent reasons"]
    return _table(header, rows)


def _cut(report: dict[str, Any]) -> str:
    if not report["cut"]:
        return ""
    rows = [[reason, row["documents"], row["characters"], _mb(row["bytes"])] for reason, row in report["cut"].items()]
    header = ["cut out of documents that stayed", "documents", "characters", "MB"]
    return _table(header, rows)


def _changes(report: dict[str, Any]) -> str:
    scrubbed = ", ".join(f"{count:,} &lt;{escape(kind)}&gt;" for kind, count in report["scrubbed"].items()) or "none"
    return (
        f"<p>In what stayed: {report['boilerplate']:,} paragraphs or sentences of boilerplate dropped; "
        f"personal data replaced: {scrubbed}.</p>"
    )


def _shards(report: dict[str, Any]) -> str:
    manifest = report["shards"]
    if manifest is None:
        return ""
    rows = [
        [group["source"], group["language"], split, group["documents"], group["tokens"]]
        for split, entry in manifest["splits"].items()
        for group in entry["groups"]
    ]
    totals = ", ".join(f"{name}: {entry['tokens']:,} tokens" for name, entry in manifest["splits"].items())
    return (
        f"<h2>Mixture and shards</h2><p>{escape(totals)}</p>"
        + _mixture_plot(report)
        + _table(["source", "language", "split", "documents", "tokens"], rows)
    )


def _bad_records(report: dict[str, Any]) -> str:
    if not report["bad_records"]:
        return "<p>None.</p>"
    rows = [
        [row["source"], row["file"], row["record"], row["what"], row["shown"][:100]] for row in report["bad_records"]
    ]
    return _table(["source", "file", "record", "what is wrong", "how it begins"], rows)


def _samples(report: dict[str, Any]) -> str:
    return "\n".join(
        f"<details><summary>{escape(reason)}</summary>"
        + "".join(f"<p>{escape(sample['id'])}</p><pre>{escape(sample['text'])}</pre>" for sample in samples)
        + "</details>"
        for reason, samples in report["samples"].items()
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    def cells(values: Sequence[object], tag: str) -> str:
        shown = (f"{value:,}" if isinstance(value, int) else str(value) for value in values)
        return "<tr>" + "".join(f"<{tag}>{escape(value)}</{tag}>" for value in shown) + "</tr>"

    return "<table>" + cells(header, "th") + "".join(cells(row, "td") for row in rows) + "</table>"


def _reasons_plot(report: dict[str, Any]) -> str:
    reasons = list(report["reasons"].items())[:25][::-1]
    if not reasons:
        return "<p>Nothing left.</p>"
    figure, axes = _figure(0.28 * len(reasons) + 0.9)
    axes.barh(
        [reason for reason, _ in reasons],
        [row["documents"] for _, row in reasons],
        color=[_COLOURS[_kind(reason)] for reason, _ in reasons],
    )
    axes.set_xscale("symlog")
    axes.set_xlabel("documents")
    return _svg(figure)


def _sources_plot(report: dict[str, Any]) -> str:
    sources = [(name, source) for name, source in report["sources"].items() if source["in"]["bytes"]][::-1]
    figure, axes = _figure(0.2 * len(sources) + 1.2)
    left = [0.0] * len(sources)
    for kind, colour in _COLOURS.items():
        widths = []
        for _, source in sources:
            if kind == "kept":
                size = source["kept"]["bytes"]
            else:
                size = sum(row["bytes"] for reason, row in source["rejected"].items() if _kind(reason) == kind)
            widths.append(size / 1e6)
        axes.barh([name for name, _ in sources], widths, left=left, color=colour, label=kind)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_xlabel("MB of text")
    axes.legend(loc="lower right")
    axes.tick_params(axis="y", labelsize=7)
    return _svg(figure)


def _lengths_plot(report: dict[str, Any]) -> str:
    figure, axes = _figure(2.6)
    languages = sorted({language for language, _, _ in report["lengths"]})
    width = 0.8 / max(1, len(languages))
    for i, language in enumerate(languages):
        counts = {int(bits): documents for name, bits, documents in report["lengths"] if name == language}
        bins = sorted(counts)
        axes.bar([b + i * width for b in bins], [counts[b] for b in bins], width=width, label=language)
    ticks = sorted({int(bits) for _, bits, _ in report["lengths"]})
    axes.set_xticks(ticks, [f"{2**b // 2:,}" for b in ticks], rotation=45, fontsize=7)
    axes.set_xlabel("characters of a document, from")
    axes.set_ylabel("documents")
    if languages:
        axes.legend()
    return _svg(figure)


def _mixture_plot(report: dict[str, Any]) -> str:
    """Each source's share of the bytes that stayed, beside its share of the tokens that are trained on."""
    groups = report["shards"]["splits"].get("train", {}).get("groups", [])
    tokens: dict[str, int] = {}
    for group in groups:
        tokens[group["source"]] = tokens.get(group["source"], 0) + group["tokens"]
    names = sorted(tokens, key=lambda name: tokens[name])[-30:]
    if not names:
        return ""
    total_bytes = max(1, report["total"]["kept"]["bytes"])
    total_tokens = max(1, sum(tokens.values()))
    figure, axes = _figure(0.3 * len(names) + 1.2)
    rows = range(len(names))
    natural = [
        100 * report["sources"].get(name, {"kept": {"bytes": 0}})["kept"]["bytes"] / total_bytes for name in names
    ]
    axes.barh([row + 0.2 for row in rows], natural, height=0.38, color="#b0b7c3", label="bytes that stayed")
    mixed = [100 * tokens[name] / total_tokens for name in names]
    axes.barh([row - 0.2 for row in rows], mixed, height=0.38, color="#3b7dd8", label="tokens of the mixture")
    axes.set_yticks(list(rows), names, fontsize=7)
    axes.set_xlabel("per cent")
    axes.legend(loc="lower right")
    return _svg(figure)


def _kind(reason: str) -> str:
    head = reason.partition(":")[0]
    return head if head in _COLOURS else "duplicate"


def _figure(height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "chuan", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return re.sub(r"^.*?(?=<svg)", "", out.getvalue(), flags=re.DOTALL)


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
