"""Planted truth for the corpus: near-duplicates of an exact similarity, and questions written in other ways."""

import random
import re
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from datatrove.data import Document

from chuan.corpus.shingles import ShingleHasher, TokenHasher, split_tokens
from chuan.corpus.stages import Stage, read_documents, write_documents
from chuan.tasks.question import Question

_CONSONANTS, _VOWELS = "bcdfghklmnprstvw", "aeiou"


class Writer:
    """Texts of Chinese characters or of English-looking words, common ones more often (Zipf), punctuated."""

    def __init__(self, language: str, seed: int) -> None:
        self.random = random.Random(seed)
        self.language = language
        if language == "zh":
            self.words = [chr(0x4E00 + i) for i in self.random.sample(range(20_000), 3000)]
        else:
            self.words = list(dict.fromkeys(self._build_word() for _ in range(20_000)))
        self._weights = np.cumsum([1 / (rank + 3) for rank in range(len(self.words))]).tolist()

    def write_tokens(self, count: int) -> list[str]:
        return self.random.choices(self.words, cum_weights=self._weights, k=count)

    def join(self, tokens: Sequence[str]) -> str:
        """A text of sentences and paragraphs that has exactly these tokens."""
        blank, comma, stop = ("", "，", "。") if self.language == "zh" else (" ", ", ", ". ")
        pieces = []
        for i, token in enumerate(tokens, start=1):
            pieces += [token, "\n" if i % 90 == 0 else stop if i % 18 == 0 else comma if i % 7 == 0 else blank]
        return "".join(pieces).strip() + stop.strip()

    def write(self, count: int) -> str:
        return self.join(self.write_tokens(count))

    def write_pair(self, count: int, similarity: float, shingle: int) -> tuple[str, str]:
        """Two texts whose sets of shingles have this Jaccard similarity, to 0.005: single words are exchanged.

        About `count` words: as many as make the similarity one that whole exchanges can give.
        """
        # s = (n - m) / (n + m), and a word far from its like changes `shingle` shingles.
        ratio = (1 + similarity) / (1 - similarity) * shingle
        changes = max(1, round(count / ratio))
        count = round(changes * ratio) + shingle - 1
        while True:
            tokens = self.write_tokens(count)
            other = list(tokens)
            step = count // changes
            for i in range(changes):
                place = i * step + self.random.randrange(shingle, step - shingle)
                other[place] = self.random.choice(self.words)
            first, second = self.join(tokens), self.join(other)
            if abs(measure_jaccard(first, second, shingle) - similarity) <= 0.005:
                return first, second

    def _build_word(self) -> str:
        syllables = self.random.randint(1, 4)
        return "".join(self.random.choice(_CONSONANTS) + self.random.choice(_VOWELS) for _ in range(syllables))


def measure_jaccard(first: str, second: str, shingle: int) -> float:
    tokens, shingles = TokenHasher(), ShingleHasher()
    one, other = (
        set(shingles.hash(shingles.sum_prefixes(tokens.hash(split_tokens(text))), shingle).tolist())
        for text in (first, second)
    )
    return len(one & other) / len(one | other)


def write_question(question: Question, marks: Sequence[str] = ("A. ", "B. ", "C. ", "D. ", "E. ", "F. ", "G. ")) -> str:
    """A question as pages have it; the marks of those whose options stand inside are exchanged."""
    if question.choices:
        lines = [mark + choice for mark, choice in zip(marks, question.choices, strict=False)]
        return "\n".join([question.question, *lines])
    return re.sub(r"(?<![A-Za-z])([A-D])\s*[．.、]", lambda m: marks["ABCD".index(m[1])], question.question)


def space_out(text: str) -> str:
    """Blanks between Chinese characters, doubled blanks elsewhere."""
    text = re.sub(r"(?<=[\u4e00-\u9fff，。；：？！])(?=[\u4e00-\u9fff])", " ", text)
    return re.sub(r"(?<=\S) (?=\S)", "  ", text)


WAYS = {
    "exact": write_question,
    "spaced": lambda question: space_out(write_question(question)),
    "(E) (F) (G) (H)": lambda question: write_question(question, ["(E)", "(F)", "(G)", "(H)", "(I)", "(J)", "(K)"]),
    "① ② ③ ④": lambda question: write_question(question, ["① ", "② ", "③ ", "④ ", "⑤ ", "⑥ ", "⑦ "]),
    "1) 2) 3) 4)": lambda question: write_question(question, ["1) ", "2) ", "3) ", "4) ", "5) ", "6) ", "7) "]),
}


def write_source(tasks: Iterable[Iterable[tuple[str, str]]], folder: Path) -> str:
    """Documents (id, text) as an earlier stage leaves them, one file a task."""
    with write_documents(str(folder)) as writer:
        for rank, documents in enumerate(tasks):
            for name, text in documents:
                writer.write(Document(text, name), rank)
    return str(folder)


def run_stages(stages: Iterable[Stage]) -> None:
    """All tasks in this process, in order."""
    for stage in stages:
        for rank in range(stage.tasks):
            data = None
            for step in stage.steps:
                data = step(data, rank, stage.tasks)
            deque(data or (), maxlen=0)


def read_folder(folder: Path) -> dict[str, Document]:
    return {document.id: document for document in read_documents(str(folder))()} if any(folder.glob("*")) else {}
