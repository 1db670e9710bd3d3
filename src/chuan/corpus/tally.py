"""What became of the documents, counted in bounded memory: a stage of its own, whose tasks share the files out.

In: the folders that earlier stages left. Out: for each task one JSON file of counts; `merge_tallies` adds them up. What
is kept of single documents is a few samples of each reason, chosen by a hash so that no order of work changes them.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import xxhash
from datatrove.pipeline.base import PipelineStep

from chuan.corpus.stages import Stage
from chuan.corpus.streams import read_lines

SAMPLES = 4  # of each reason
_SHOWN = 400  # characters of a sample
Key = tuple[str, ...]


class Tally(PipelineStep):
    """Counts documents that were rejected anywhere, and those that `kept` holds."""

    type = "Report"
    name = "Tally"

    def __init__(self, work: str, kept: str, output: str) -> None:
        super().__init__()
        self.work = work
        self.kept = kept
        self.output = output

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        rejected = sorted(path for folder in sorted(Path(self.work).rglob("rejected")) for path in folder.glob("*.zst"))
        cut = sorted(path for folder in sorted(Path(self.work).rglob("cut")) for path in folder.glob("*.zst"))
        kept = sorted(Path(self.kept).glob("*.zst"))
        tally = _Counts()
        for path in rejected[rank::world_size]:
            for document in _documents(path):
                tally.add_rejected(document)
        for path in cut[rank::world_size]:
            for document in _documents(path):
                tally.add_cut(document)
        for path in kept[rank::world_size]:
            for document in _documents(path):
                tally.add_kept(document)
        folder = Path(self.output)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{rank:05d}.json").write_text(json.dumps(tally.as_dict(), ensure_ascii=False), encoding="utf-8")


def tally_stages(work: str, kept: str, output: str, tasks: int) -> list[Stage]:
    return [Stage("report", [Tally(work, kept, output)], tasks)]


def merge_tallies(folder: Path) -> dict[str, Any]:
    """The counts of all tasks: lists of rows, sorted, and samples by reason."""
    total = _Counts()
    for path in sorted(folder.glob("*.json")):
        total.merge(json.loads(path.read_text(encoding="utf-8")))
    return total.as_dict()


class _Counts:
    def __init__(self) -> None:
        self.rejected: dict[Key, list[int]] = defaultdict(lambda: [0, 0, 0])  # by source, language, reason
        self.kept: dict[Key, list[int]] = defaultdict(lambda: [0, 0, 0])  # by source, language
        self.cut: dict[Key, list[int]] = defaultdict(lambda: [0, 0, 0])  # out of documents that stay; as rejected
        self.lengths: Counter[Key] = Counter()  # by language, and the power of two that the length in characters has
        self.scrubbed: Counter[str] = Counter()
        self.boilerplate = 0
        self.samples: dict[str, list[tuple[int, dict[str, Any]]]] = defaultdict(list)

    def add_rejected(self, document: dict[str, Any]) -> None:
        metadata, text = document.get("metadata", {}), document.get("text", "")
        reason = str(metadata.get("reason", "unknown"))
        _add(self.rejected[_key(metadata, reason)], text)
        self._sample(reason, document)

    def add_cut(self, document: dict[str, Any]) -> None:
        metadata, text = document.get("metadata", {}), document.get("text", "")
        reason = str(metadata.get("reason", "unknown"))
        _add(self.cut[_key(metadata, reason)], text)
        self._sample(reason, document)

    def add_kept(self, document: dict[str, Any]) -> None:
        metadata, text = document.get("metadata", {}), document.get("text", "")
        _add(self.kept[_key(metadata)], text)
        self.lengths[(str(metadata.get("language", "")), str(len(text).bit_length()))] += 1
        self.scrubbed.update(metadata.get("scrubbed", {}))
        self.boilerplate += metadata.get("boilerplate", 0)

    def merge(self, other: dict[str, Any]) -> None:
        for name in ("rejected", "cut", "kept"):
            table = getattr(self, name)
            for *key, documents, characters, size in other[name]:
                row = table[tuple(key)]
                table[tuple(key)] = [row[0] + documents, row[1] + characters, row[2] + size]
        for language, bits, documents in other["lengths"]:
            self.lengths[(language, bits)] += documents
        self.scrubbed.update(other["scrubbed"])
        self.boilerplate += other["boilerplate"]
        for reason, samples in other["samples"].items():
            for priority, sample in samples:
                self._offer(reason, priority, sample)

    def as_dict(self) -> dict[str, Any]:
        return {
            "rejected": [[*key, *row] for key, row in sorted(self.rejected.items())],
            "cut": [[*key, *row] for key, row in sorted(self.cut.items())],
            "kept": [[*key, *row] for key, row in sorted(self.kept.items())],
            "lengths": [[*key, count] for key, count in sorted(self.lengths.items())],
            "scrubbed": dict(sorted(self.scrubbed.items())),
            "boilerplate": self.boilerplate,
            "samples": {reason: _sort_samples(samples) for reason, samples in sorted(self.samples.items())},
        }

    def _sample(self, reason: str, document: dict[str, Any]) -> None:
        text, identifier = document.get("text", "")[:_SHOWN], str(document.get("id", ""))
        sample = {"id": identifier, "source": document.get("metadata", {}).get("source", ""), "text": text}
        self._offer(reason, xxhash.xxh32_intdigest(f"{identifier} {text}".encode("utf-8", "surrogatepass")), sample)

    def _offer(self, reason: str, priority: int, sample: dict[str, Any]) -> None:
        self.samples[reason] = heapq.nsmallest(
            SAMPLES, [*self.samples[reason], (priority, sample)], key=lambda item: (item[0], item[1]["id"])
        )


def _key(metadata: dict[str, Any], *more: str) -> Key:
    return (str(metadata.get("source", "")), str(metadata.get("language", "")), *more)


def _add(row: list[int], text: str) -> None:
    row[0] += 1
    row[1] += len(text)
    row[2] += len(text.encode("utf-8", "surrogatepass"))


def _sort_samples(samples: list[tuple[int, dict[str, Any]]]) -> list[tuple[int, dict[str, Any]]]:
    return sorted(samples, key=lambda item: (item[0], item[1]["id"]))


def _documents(path: Path) -> Iterator[dict[str, Any]]:
    for _, line in read_lines(path):
        if line:
            yield orjson.loads(line)
