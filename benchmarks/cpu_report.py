"""From the measured rounds of `cpu_inference.py` to the section of docs/benchmarks.md, and its plot.

In: the results of one kind of processor of one maker. Out: what stands between its marks in the document; the others'
sections stay as they are. Medians with the least and the most; a ratio is the median of the rounds' own ratios.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
FEATURES = {
    "amx": "with AMX",
    "avx512_vnni": "with AVX-512 VNNI",
    "avx2": "with AVX2 only",
    "other": "with other instructions",
}
MAKERS = {"intel": "an Intel processor", "amd": "an AMD processor", "other": "another processor"}
MARGIN = 0.7e9
MANY_PAGES = 10_000  # of the disk, in a measurement
Results = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """A line of the table: a row, two of its names, and the bar of each kind of processor."""

    row: str
    what: str
    peer: str
    peer_name: str
    bars: dict[str, float]
    ours: str = "chuan"


def _compare(row: str, what: str, peer: str, name: str, vnni: float, avx2: float) -> Comparison:
    return Comparison(row, what, peer, name, {"amx": vnni, "avx512_vnni": vnni, "avx2": avx2})


FASTER = (
    _compare("decode", "int8 decode, 1 sequence, 128 tokens of context", "llama.cpp", "llama.cpp Q8_0", 1.0, 1.3),
    _compare("prefill-256", "int8 prefill, 256 tokens", "llama.cpp", "llama.cpp Q8_0", 3.0, 1.7),
    _compare("prefill-256", "int8 prefill, 256 tokens", "openvino", "OpenVINO int8", 1.4, 1.2),
    _compare("prefill-2048", "int8 prefill, 2,048 tokens", "llama.cpp", "llama.cpp Q8_0", 3.0, 1.7),
    _compare("prefill-2048", "int8 prefill, 2,048 tokens", "openvino", "OpenVINO int8", 1.4, 1.2),
    _compare("together", "int8 decode, 8 sequences together", "llama.cpp", "llama.cpp Q8_0", 2.0, 2.0),
    _compare("together", "int8 decode, 8 sequences together", "openvino", "OpenVINO int8", 1.0, 1.8),
    _compare("int4", "int4 decode, 1 sequence", "llama.cpp", "llama.cpp Q4_0", 1.0, 1.2),
    _compare("smollm2", "SmolLM2-135M int8 decode", "llama.cpp", "llama.cpp Q8_0 of the same", 0.8, 0.8),
)
FIVE_ROWS = 1.3


def write_report(results_path: Path, plot_python: str) -> None:
    """Replaces a processor's section of docs/benchmarks.md, and draws its plot with a Python that has matplotlib."""
    results: Results = json.loads(results_path.read_text())
    processor = results_path.stem.removeprefix("cpu_inference_")
    kind = processor.split("-")[0]
    picture = DOCS / f"{results_path.stem}.png"
    figures = {"ratios": list_ratios(results, kind), "curves": results.get("curves", {}).get("rounds", [None])[0]}
    script = Path(__file__).with_name("cpu_plot.py")
    subprocess.run([plot_python, script, picture], input=json.dumps(figures), text=True, check=True)
    section = render_section(results, processor, picture.name)
    document = DOCS / "benchmarks.md"
    document.write_text(place_section(document.read_text(encoding="utf-8"), processor, section), encoding="utf-8")
    print(f"\n{section}\n\nwritten to {document} and {picture}")


def place_section(document: str, processor: str, section: str) -> str:
    """The document with the section between its marks: where they are, or at the end."""
    first, last = f"<!-- cpu_inference {processor} -->", f"<!-- end of cpu_inference {processor} -->"
    before, mark, rest = document.partition(first)
    after = rest.partition(last)[2] if mark else "\n"
    return f"{before.rstrip()}\n\n{first}\n\n{section}\n\n{last}{after}"


def render_section(results: Results, processor: str, picture: str) -> str:
    """Heading, machine, table, curves."""
    kind, maker = processor.split("-")
    dates = sorted({row["date"] for row in results.values()})
    machines = sorted({row["machine"] for row in results.values()})
    versions = collect_versions(results)
    rounds = min((len(row["rounds"]) for name, row in results.items() if name not in ("memory", "curves")), default=1)
    lines = [
        f"## 8 and 4 bits on a plain CPU: {MAKERS[maker]} {FEATURES[kind]}",
        "",
        "`python benchmarks/cpu_inference.py`",
        "",
        f"{'; '.join(machines)} ({', '.join(dates)}). {versions}.",
        "",
        "A 7B of random weights, all sides in turn, each in a process of its own that stays, at least "
        f"{rounds} rounds: medians (least to most); a ratio is the median of the rounds' ratios. OpenVINO runs 8 of "
        "the 32 layers and the head, scaled, with the settings that it is fastest with.",
        "",
        "| | Chuan | against | ratio | bar | met |",
        "|---|---|---|---|---|---|",
        *list_lines(results, kind),
        "",
        *describe_limits(results),
        *describe_curves(results, picture),
    ]
    return "\n".join(lines).rstrip()


def collect_versions(results: Results) -> str:
    """Of Chuan's libraries and of the peers, whatever the rows say, each once."""
    found: dict[str, str] = {}
    for row in results.values():
        for side in row["versions"].values():
            found |= {name: version for name, version in side.items() if name not in ("features", "major_faults")}
    found.pop("torch", None), found.pop("transformers", None)  # the machine's line has them
    return ", ".join(f"{name} {version.split('-')[0]}" for name, version in sorted(found.items()))


def list_lines(results: Results, kind: str) -> Iterator[str]:
    """The lines of the table."""
    for comparison in FASTER:
        if comparison.row in results and comparison.peer in results[comparison.row]["rounds"][0]:
            yield _render_faster(comparison, results[comparison.row]["rounds"], kind)
    if "five" in results:
        yield _render_five(results["five"]["rounds"])
    if "load" in results:
        yield _render_load(results["load"]["rounds"])
    if "memory" in results:
        yield _render_memory(results["memory"]["rounds"][0]["chuan"])


def list_ratios(results: Results, kind: str) -> list[dict[str, Any]]:
    """For the plot: what, the median ratio, its spread, the bar."""
    found = []
    for comparison in FASTER:
        if comparison.row in results and comparison.peer in results[comparison.row]["rounds"][0]:
            ratios = _ratios(comparison, results[comparison.row]["rounds"])
            label = f"{comparison.what.split(',')[0]}{_detail(comparison)} / {comparison.peer}"
            median = statistics.median(ratios)
            bar = comparison.bars.get(kind)
            found.append({"label": label, "ratio": median, "least": min(ratios), "most": max(ratios), "bar": bar})
    return found


def _detail(comparison: Comparison) -> str:
    _, _, tail = comparison.row.partition("-")
    return f" {tail}" if tail else " x 8" if comparison.row == "together" else ""


def _speeds(rounds: list[dict[str, Any]], name: str) -> list[float]:
    return [found[name]["tokens"] / found[name]["seconds"] for found in rounds]


def _ratios(comparison: Comparison, rounds: list[dict[str, Any]]) -> list[float]:
    ours, theirs = _speeds(rounds, comparison.ours), _speeds(rounds, comparison.peer)
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def _render_faster(comparison: Comparison, rounds: list[dict[str, Any]], kind: str) -> str:
    ours, theirs = _speeds(rounds, comparison.ours), _speeds(rounds, comparison.peer)
    ratios = _ratios(comparison, rounds)
    bar = comparison.bars.get(kind)
    met = "-" if bar is None else _say(statistics.median(ratios) >= bar)
    wanted = "-" if bar is None else f"≥ {bar} x"
    faults = statistics.median(found[comparison.peer].get("major_faults", 0) for found in rounds)
    disk = ", weights partly from the disk, where they did not fit beside the others" if faults > MANY_PAGES else ""
    against = f"{comparison.peer_name}: {_spread(theirs)} tok/s{disk}"
    return f"| {comparison.what} | {_spread(ours)} tok/s | {against} | {_spread(ratios)} x | {wanted} | {met} |"


def _render_five(rounds: list[dict[str, Any]]) -> str:
    one, five = ([1000 * found[name]["seconds"] for found in rounds] for name in ("1 row(s)", "5 row(s)"))
    ratios = [more / less for more, less in zip(five, one, strict=True)]
    met = _say(statistics.median(ratios) <= FIVE_ROWS)
    return (
        f"| a step of 5 rows | {_spread(five)} ms | own step of 1 row: {_spread(one)} ms | {_spread(ratios)} x | "
        f"≤ {FIVE_ROWS} x | {met} |"
    )


def _render_load(rounds: list[dict[str, Any]]) -> str:
    ours, theirs = ([found[name]["seconds"] for found in rounds] for name in ("chuan", "llama.cpp"))
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    mine, other = statistics.median(ours), statistics.median(theirs)
    met = _say(mine <= max(2 * other, other + 3))
    return (
        f"| `load()` of a saved int8 folder in the page cache, to the first token | {_spread(ours)} s | "
        f"llama.cpp Q8_0: {_spread(theirs)} s | {_spread(ratios)} x | ≤ 2 x, or 3 s more | {met} |"
    )


def _render_memory(found: dict[str, Any]) -> str:
    cache = 4096 * found["cache"]
    bar = found["weights"] + cache + MARGIN
    parts = f"weights {found['weights'] / 1e9:.2f} GB (files {found['files'] / 1e9:.2f}), KV {cache / 1e9:.2f} GB"
    over = found["peak"] - found["weights"] - cache
    return (
        f"| peak anonymous memory at 4,096 tokens of context | {found['peak'] / 1e9:.2f} GB | {parts} | "
        f"{over / 1e9:+.2f} GB | ≤ {bar / 1e9:.2f} GB | {_say(found['peak'] <= bar)} |"
    )


def describe_limits(results: Results) -> Iterator[str]:
    """What the machine itself reaches, and how much of that is used."""
    if "decode" not in results:
        return
    rounds = results["decode"]["rounds"]
    limits = rounds[0]["limits"]
    reached = statistics.median(found["chuan"]["bandwidth"] for found in rounds)
    yield (
        f"Decoding reads {reached / 1e9:.1f} GB/s of weights, keys and values; a sum by torch over memory that no "
        f"cache holds reads {limits['bandwidth'] / 1e9:.1f}."
    )
    yield ""


def describe_curves(results: Results, picture: str) -> Iterator[str]:
    """A sentence for each curve, and the plot."""
    if "curves" in results:
        found = results["curves"]["rounds"][0]
        decode, prefill, memory = (
            sorted((int(key), value) for key, value in found[name].items()) for name in ("decode", "prefill", "memory")
        )
        (few, early), (many, late) = decode[0], decode[-1]
        yield (
            f"- A token takes {1000 * early:.0f} ms behind {few} tokens of context and {1000 * late:.0f} ms behind "
            f"{many:,}: {1e6 * (late - early) / (many - few):.1f} µs more for each."
        )
        middle, (most, longest) = prefill[len(prefill) // 2], prefill[-1]
        yield (
            f"- A prompt is read at {middle[0] / middle[1]:.1f} tokens a second where it has {middle[0]:,}, and at "
            f"{most / longest:.1f} where it has {most:,}."
        )
        (one, small), (several, large) = memory[0], memory[-1]
        yield (
            f"- Memory is {small / 1e9:.2f} GB with {one} sequence of 256 tokens and {large / 1e9:.2f} GB with "
            f"{several}: {(large - small) / (several - one) / 1e9:.2f} GB for each."
        )
        yield ""
    yield f"![ratios and curves]({picture})"


def _spread(values: list[float]) -> str:
    return f"{_round(statistics.median(values))} ({_round(min(values))} to {_round(max(values))})"


def _round(value: float) -> str:
    """Three digits."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _say(met: bool) -> str:
    return "yes" if met else "**no**"
