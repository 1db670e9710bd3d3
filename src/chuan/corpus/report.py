"""The report of a build: what came in, what left for which reason, what stayed, and how long it took.

In: the counts that the stages left. Out: `report.json`, and `report.html`, one page that needs no other file. Every
text out of the corpus is escaped. Nothing here is part of the corpus: times differ from run to run.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from chuan.corpus.recipe import CorpusRecipe
from chuan.corpus.report_page import render_page
from chuan.corpus.sources import SourceFile
from chuan.corpus.tally import merge_tallies
from chuan.recipes import render_recipe
from chuan.staging import staged_file

_BAD_SHOWN = 30
COUNTED = ("documents", "characters", "bytes")


def write_report(
    recipe: CorpusRecipe, files: Sequence[SourceFile], output: Path, stages: Sequence[str]
) -> dict[str, Any]:
    """Gathers the counts, writes both files, and returns what is in the JSON."""
    report = gather_report(recipe, files, output, stages)
    with staged_file(output / "report.json") as path:
        path.write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")
    with staged_file(output / "report.html") as path:
        path.write_text(render_page(report), encoding="utf-8")
    return report


def gather_report(
    recipe: CorpusRecipe, files: Sequence[SourceFile], output: Path, stages: Sequence[str]
) -> dict[str, Any]:
    """All counts, as JSON takes them."""
    work = output / "work"
    tally = merge_tallies(work / "tally")
    incoming = _add_counts(work / "clean" / "counts")
    sources: dict[str, dict[str, Any]] = {
        source.name: {
            "files": sum(file.source.name == source.name for file in files),
            "in": {name: incoming[source.name][name] for name in COUNTED},
            "bad": incoming[source.name]["bad"],
            "skipped": incoming[source.name]["skipped"],
            "rejected": {},
            "kept": dict.fromkeys(COUNTED, 0),
        }
        for source in recipe.sources
    }
    reasons: dict[str, dict[str, int]] = {}
    languages: dict[str, dict[str, int]] = {}
    for source, language, reason, *counts in tally["rejected"]:
        row = dict(zip(COUNTED, counts, strict=True))
        _add_to(sources[source]["rejected"].setdefault(reason, dict.fromkeys(COUNTED, 0)), row)
        _add_to(reasons.setdefault(reason, dict.fromkeys(COUNTED, 0)), row)
        _add_to(languages.setdefault(language, {}), {f"rejected_{name}": row[name] for name in COUNTED})
    cut: dict[str, dict[str, int]] = {}
    for _, _, reason, *counts in tally["cut"]:
        _add_to(cut.setdefault(reason, {}), dict(zip(COUNTED, counts, strict=True)))
    for source, language, *counts in tally["kept"]:
        row = dict(zip(COUNTED, counts, strict=True))
        _add_to(sources[source]["kept"], row)
        _add_to(languages.setdefault(language, {}), row)
    return {
        "total": {
            "in": _total(source["in"] for source in sources.values()),
            "rejected": _total(reasons.values()),
            "kept": _total(source["kept"] for source in sources.values()),
            "bad": sum(source["bad"] for source in sources.values()),
        },
        "sources": sources,
        "reasons": dict(sorted(reasons.items(), key=lambda item: -item[1]["documents"])),
        "cut": cut,
        "languages": languages,
        "lengths": tally["lengths"],
        "scrubbed": tally["scrubbed"],
        "boilerplate": tally["boilerplate"],
        "samples": {reason: [sample for _, sample in samples] for reason, samples in tally["samples"].items()},
        "bad_records": list(_bad_records(work / "clean" / "bad")),
        "shards": _load_json(output / "shards" / "manifest.json"),
        "stages": [_stage_row(name, work / "logs" / name) for name in stages],
        "recipe": render_recipe(recipe),
    }


def _stage_row(name: str, folder: Path) -> dict[str, Any]:
    usage = [_load_json(path) for path in sorted((folder / "usage").glob("*.json"))]
    pulse = [_load_json(path) for path in sorted((folder / "pulse").glob("*.json"))]
    cpu = sum(row["cpu_seconds"] for row in usage)
    size = sum(row["bytes"] for row in pulse)
    return {
        "name": name,
        "seconds": _load_json(folder / "seconds.json") or 0.0,
        "cpu_seconds": cpu,
        "bytes": size,
        "mb_per_cpu_second": size / 1e6 / cpu if cpu else 0.0,
        "peak_memory": max((row["peak_memory"] for row in usage), default=0),
    }


def _bad_records(folder: Path) -> Iterator[dict[str, Any]]:
    shown = 0
    for path in sorted(folder.glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for line in file:
                if shown == _BAD_SHOWN:
                    return
                shown += 1
                yield json.loads(line)


def _add_counts(folder: Path) -> dict[str, Counter[str]]:
    totals: dict[str, Counter[str]] = defaultdict(Counter)
    for path in sorted(folder.glob("*.json")):
        for source, counts in _load_json(path).items():
            totals[source].update(counts)
    return totals


def _add_to(row: dict[str, int], more: dict[str, int]) -> None:
    for name, value in more.items():
        row[name] = row.get(name, 0) + value


def _total(rows: Any) -> dict[str, int]:
    total = dict.fromkeys(COUNTED, 0)
    for row in rows:
        _add_to(total, row)
    return total


def _load_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
