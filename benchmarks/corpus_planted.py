"""Planted truth: near-duplicates of similarity 0.8, strangers, and every question of benchmarks, in five spellings.

    PYTHONPATH=. python benchmarks/corpus_planted.py [--questions FOLDER] [--pairs 1000]

Pairs are made text, half Chinese and half English, whose sets of the recipe's own shingles have a Jaccard similarity of
0.8 to 0.005; they go through the stages of a build, and beside them through datatrove's own with its default of 14 x 8
hashes. `--questions` is a folder that holds ceval, mmlu, agieval and gaokao; each question stands in the middle of
a page of other text, without its passage, and counts as removed where nothing that is kept holds half of it any more.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from datatrove.pipeline.dedup import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.utils.word_tokenizers import WordTokenizer
from machine import describe_machine
from tests.support.planted import WAYS, Writer, read_folder, run_stages, write_source

from chuan.corpus.benchmark_index import BenchmarkIndex
from chuan.corpus.decontaminate import BenchmarkSettings, DecontaminateSettings, decontaminate_stages
from chuan.corpus.dedup import DedupSettings, dedup_stages
from chuan.corpus.near_duplicates import NearDuplicateSettings
from chuan.corpus.repeated_passages import RepeatedPassageSettings
from chuan.corpus.shingles import split_tokens
from chuan.corpus.stages import Stage, read_documents, write_documents
from chuan.tasks.benchmarks import find_benchmark, load_questions

SIMILARITY = 0.8
TASKS = 4
BENCHMARKS = ("ceval", "mmlu", "agieval", "gaokao")


class Words(WordTokenizer):
    """The recipe's tokens for datatrove, whose own need spacy."""

    def word_tokenize(self, text: str) -> list[str]:
        return split_tokens(text)

    def sent_tokenize(self, text: str) -> list[str]:
        return text.splitlines()

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=Path, help="the folder of the benchmarks' data")
    parser.add_argument("--pairs", type=int, default=1000)
    given = parser.parse_args()
    print(describe_machine(), "\n")
    with tempfile.TemporaryDirectory() as name:
        passed = measure_pairs(given.pairs, Path(name))
        if given.questions is not None:
            passed = measure_questions(given.questions, Path(name)) and passed
    return 0 if passed else 1


def measure_pairs(count: int, folder: Path) -> bool:
    shingle = NearDuplicateSettings().shingle
    writers = [Writer(language, seed) for seed, language in enumerate(("zh", "en"))]
    tasks: list[list[tuple[str, str]]] = [[] for _ in range(TASKS)]
    for i in range(count):
        writer = writers[i % 2]
        pair = writer.write_pair(writer.random.randrange(200, 1500), SIMILARITY, shingle)
        strangers = [writer.write(len(split_tokens(text))) for text in pair]
        for side in (0, 1):
            tasks[(i + side) % TASKS].append((f"pair-{i}-{side}", pair[side]))
            tasks[(i + 2 * side) % TASKS].append((f"stranger-{i}-{side}", strangers[side]))
    source = write_source(tasks, folder / "pairs")
    print(f"{count} pairs at {SIMILARITY}, {count} pairs of strangers, {TASKS} tasks\n")
    print("| hashes | pairs found | zh | en | strangers removed | seconds |\n|---|---|---|---|---|---|")
    results = {}
    for label, settings in {
        "20 x 8, checked (default)": NearDuplicateSettings(),
        "20 x 8": NearDuplicateSettings(min_similarity=0),
        "14 x 8": NearDuplicateSettings(bands=14, min_similarity=0),
    }.items():
        work = folder / label
        began = time.perf_counter()
        whole = DedupSettings(near=settings, passages=RepeatedPassageSettings(enabled=False))
        run_stages(dedup_stages(whole, source, str(work), TASKS))
        results[label] = report_pairs(label, work / "rejected", time.perf_counter() - began)
    began = time.perf_counter()
    run_stages(datatrove_stages(source, str(folder / "datatrove")))
    report_pairs("datatrove, 14 x 8", folder / "datatrove" / "rejected", time.perf_counter() - began)
    found, strangers_removed = results["20 x 8, checked (default)"]
    return found >= 0.95 * count and strangers_removed == 0


def report_pairs(label: str, rejected: Path, seconds: float) -> tuple[int, int]:
    names = list(read_folder(rejected))
    pairs = {int(name.split("-")[1]) for name in names if name.startswith("pair-")}
    strangers = [name for name in names if name.startswith("stranger-")]
    even = sum(i % 2 == 0 for i in pairs)
    print(f"| {label} | {len(pairs)} | {even} | {len(pairs) - even} | {len(strangers)} | {seconds:.1f} |", flush=True)
    return len(pairs), len(strangers)


def datatrove_stages(source: str, work: str) -> list[Stage]:
    """datatrove's four steps as its examples have them."""
    config = MinhashConfig()
    signatures = MinhashDedupSignature(f"{work}/signatures", config, Words())
    buckets = MinhashDedupBuckets(f"{work}/signatures", f"{work}/buckets", config=config)
    cluster = MinhashDedupCluster(f"{work}/buckets", f"{work}/remove", config)
    drop = MinhashDedupFilter(f"{work}/remove", exclusion_writer=write_documents(f"{work}/rejected"))
    return [
        Stage("signatures", [read_documents(source), signatures], TASKS),
        Stage("buckets", [buckets], config.num_buckets),
        Stage("cluster", [cluster], 1),
        Stage("filter", [read_documents(source), drop, write_documents(f"{work}/kept")], TASKS),
    ]


def measure_questions(data: Path, folder: Path) -> bool:
    print("\n| benchmark | questions | too short | " + " | ".join(WAYS) + " |\n|---|---|---|" + "---|" * len(WAYS))
    fillers = {language: Writer(language, 7) for language in ("zh", "en")}
    passed = True
    for name in BENCHMARKS:
        benchmark = find_benchmark(name)
        questions = [q for split in benchmark.splits for q in load_questions(name, data, split=split)]
        pages = [[fillers[language].write(300) for language in ("zh", "en")] for _ in range(20)]
        cells, short = [], 0
        for way, write in WAYS.items():
            documents = [
                (f"{i}", f"{pages[i % 20][0]}\n\n{write(question)}\n\n{pages[i % 20][1]}")
                for i, question in enumerate(questions)
            ]
            work = folder / f"{name}-{way}"
            source = write_source([documents], work / "source")
            settings = DecontaminateSettings(benchmarks=[BenchmarkSettings(name=name, data=str(data))])
            run_stages(decontaminate_stages(settings, source, str(work), 1))
            index = BenchmarkIndex(work / "index")
            short = index.too_short
            touched = read_folder(work / "cut").keys() | read_folder(work / "rejected").keys()
            left = sum(
                name in touched and bool(index.find(document.text, settings.min_share)[0])
                for name, document in read_folder(work / "kept").items()
            )
            cells.append(len(touched) - left)
        passed = passed and min(cells) >= len(questions) - short
        print(f"| {name} | {len(questions)} | {short} | " + " | ".join(map(str, cells)) + " |", flush=True)
    return passed


if __name__ == "__main__":
    raise SystemExit(main())
