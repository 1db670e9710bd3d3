"""What the rules, the scrubbing and the offensive words find in a folder of text, with contexts to judge them by.

    python benchmarks/corpus_rules.py 'FOLDER/*.jsonl.zst' --every 1 --contexts 40

Prints one line a rule and kind: how many documents or places, and samples chosen by a hash. Whether a find is right is
for people to say; docs/corpus.md has what was counted so.
"""

from __future__ import annotations

import argparse
import heapq
import time
from collections import Counter, defaultdict

import xxhash

from chuan.corpus import offensive, scrub
from chuan.corpus.language import LanguageDetector
from chuan.corpus.normalise import normalise
from chuan.corpus.readers import read_records
from chuan.corpus.rules import RuleSettings, find_reason
from chuan.corpus.sources import Piece, SourceSettings, find_files

_KINDS: list[scrub.Kind] = ["email", "phone", "id", "ip", "card"]
_SCORES = (0.3, 0.65)  # where documents leave by default, and where FineWeb drops them
_CONTEXT = 40  # characters on each side of a find


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", help="files, as a source of a recipe names them")
    parser.add_argument("--every", type=int, default=1, help="look at every nth document")
    parser.add_argument("--contexts", type=int, default=40, help="how many finds of each kind are shown")
    options = parser.parse_args()
    finds = Finds(options.contexts)
    detector, settings, seen, size = LanguageDetector(), RuleSettings(), Counter[str](), 0
    began = time.process_time()
    for file in find_files([SourceSettings(name="text", path=options.pattern)]):
        for number, record in read_records(Piece(file)):
            if not isinstance(record, str) or number % options.every:
                continue
            text = normalise(record)
            language, score = detector.detect(text)
            seen[language] += 1
            size += len(text.encode())
            if language not in ("zh", "en"):
                finds.add(f"language:{language}", text, 0, 0)
                continue
            for bound in _SCORES:
                if score < bound:
                    finds.add(f"language score below {bound}:{language}", text, 0, 0)
            if (reason := find_reason(text, language, settings)) is not None:
                finds.add(reason, text, 0, 0)
            for kind in _KINDS:
                scrubbed, counts = scrub.scrub(text, [kind])
                if counts:
                    start = next(i for i, (a, b) in enumerate(zip(text, scrubbed, strict=False)) if a != b)
                    finds.add(f"scrub:{kind}", text, start, counts[kind])
            if hits := offensive.count_offensive(text, language):
                finds.add(f"offensive word:{language}", text, 0, hits)
                if offensive.is_offensive(text, language, offensive.OffensiveSettings(enabled=True)):
                    finds.add(f"offensive document:{language}", text, 0, hits)
    print(f"{sum(seen.values()):,} documents, {size / 1e6:.1f} MB, {time.process_time() - began:.0f} s: {dict(seen)}")
    finds.show()


class Finds:
    """Counts by kind, and a few contexts of each."""

    def __init__(self, contexts: int) -> None:
        self.contexts = contexts
        self.documents: Counter[str] = Counter()
        self.places: Counter[str] = Counter()
        self.samples: dict[str, list[tuple[int, str]]] = defaultdict(list)

    def add(self, kind: str, text: str, start: int, places: int) -> None:
        self.documents[kind] += 1
        self.places[kind] += places
        context = text[max(0, start - _CONTEXT) : start + 2 * _CONTEXT].replace("\n", "⏎")
        sample = (xxhash.xxh32_intdigest(text.encode()), context)
        self.samples[kind] = heapq.nsmallest(self.contexts, [*self.samples[kind], sample])

    def show(self) -> None:
        for kind, documents in self.documents.most_common():
            print(f"== {kind}: {documents:,} documents, {self.places[kind]:,} places")
            for _, context in self.samples[kind]:
                print(f"   {context}")


if __name__ == "__main__":
    main()
