"""Encoding: `encode_batch` beside the sentencepiece library on the same model, with 1 and 2 threads, turn by turn.

    python benchmarks/tokenizer_speed.py TOKENIZER 'FOLDER/*.jsonl.zst' [--megabytes 8] [--rounds 7]

Prints MB a second of UTF-8, the median of the rounds with the least and the most, and whether the ids are the same.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import sentencepiece
from machine import describe_machine

from chuan.corpus.readers import read_records
from chuan.corpus.sources import Piece, SourceSettings, find_files
from chuan.tokenizer.folder import load_tokenizer

Encode = Callable[[list[str]], list[list[int]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path, help="a folder with a tokenizer.model")
    parser.add_argument("pattern", help="files of text, as a source of a recipe names them")
    parser.add_argument("--megabytes", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    texts = read_texts(given.pattern, int(given.megabytes * 1e6))
    size = sum(len(text.encode()) for text in texts) / 1e6
    ours = load_tokenizer(given.tokenizer)
    library = sentencepiece.SentencePieceProcessor(model_file=str(given.tokenizer / "tokenizer.model"))
    ways: dict[str, Encode] = {}
    for threads in (1, 2):
        ways[f"chuan, {threads} threads"] = lambda batch, n=threads: ours.encode_batch(batch, threads=n)  # type: ignore[misc]
        ways[f"sentencepiece, {threads} threads"] = lambda batch, n=threads: library.encode(batch, num_threads=n)  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    ids = {}
    for name, encode in ways.items():  # once before it counts
        ids[name] = encode(texts)
    for _ in range(given.rounds):
        for name, encode in ways.items():
            began = time.perf_counter()
            encode(texts)
            seconds[name].append(time.perf_counter() - began)
    print(f"{describe_machine()}, sentencepiece {importlib.metadata.version('sentencepiece')}")
    print(f"{len(texts):,} documents, {size:.1f} MB, {ours.vocab_size:,} pieces, {given.rounds} rounds\n")
    print("| | MB/s, median | least | most | the library's ids |\n|---|---|---|---|---|")
    for name, found in seconds.items():
        speeds = sorted(size / value for value in found)
        same = ids[name] == ids["sentencepiece, 1 threads"]
        print(f"| {name} | {statistics.median(speeds):.2f} | {speeds[0]:.2f} | {speeds[-1]:.2f} | {same} |")


def read_texts(pattern: str, size: int) -> list[str]:
    """Documents of every file in turn, each file up to the same share of `size` bytes."""
    files = find_files([SourceSettings(name="text", path=pattern)])
    texts = []
    for file in files:
        left = size // len(files)
        for _, record in read_records(Piece(file)):
            if left <= 0:
                break
            if isinstance(record, str):
                texts.append(record)
                left -= len(record.encode())
    return texts


if __name__ == "__main__":
    main()
