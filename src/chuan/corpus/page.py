"""What the rules look at: a document without its fenced code, as lines, words and characters, each counted once.

In: a text and its language. Out: a `Page` of measures. Knows no thresholds.
"""

from __future__ import annotations

import re
import zlib
from functools import cached_property

import numpy as np

from chuan.corpus.language import HAN, count_characters

_FENCED = re.compile(r"^[ \t]*(```|~~~).*?(?:^[ \t]*\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_LATIN_WORD = re.compile("[A-Za-z\u00c0-\u024f][A-Za-z\u00c0-\u024f'’-]*")
_BULLET = re.compile(r"^[ \t]*[•‣▪●◦·*+\-–—■◆]", re.MULTILINE)
_FORMULA = re.compile(r"\$\$?[^$\n]{1,500}\$\$?")
_WORD = re.compile(r"\w+")
_ELLIPSIS_END = re.compile(r"(?:\.\.\.|…+|。。。)[ \t]*$", re.MULTILINE)
_PUNCTUATED_END = re.compile("[.!?:;,\"'”’。．！？：；，、…」』）)~—]$", re.MULTILINE)
_SYMBOL = re.compile(r"[#…]+|\.\.\.+|[★☆◆◇■□▲△▼▽●○※→←↑↓]")
_HEADING = re.compile(r"\n#+")
_PUNCTUATION = re.compile("[，。．！？；：、,.!?;:]")
# A sentence that begins and ends as one does; 4 to 300 characters of Chinese, or 3 to 80 words of English.
_CHINESE_SENTENCE = re.compile("[^\\s。．！？!?；;…][^\n。．！？!?；;…]{3,300}[。．！？!?；;…：:]")
_ENGLISH_SENTENCE = re.compile(r"[A-Z0-9\"'“‘(\[*_`>-][^\n.!?]{8,500}[.!?:;]")
_MOJIBAKE = re.compile(
    "\ufffd|锟斤拷|烫烫烫|屯屯屯|[ÃÂâ][\u0080-\u00bf€‚„…†‡‰‹‘’“”•–—˜™›]|æ[\u0080-\u00bf]|å[\u0080-\u00bf]"
)
_FUNCTION_ZH = frozenset("的了是在不有和人这我一上为也而之者以其于与则曰无就他她你")  # modern and classical
# Gopher's eight, and those that dialogues and instructions are held together by.
_FUNCTION_EN = frozenset(
    [
        "the",
        "be",
        "to",
        "of",
        "and",
        "that",
        "have",
        "with",
        "is",
        "are",
        "was",
        "in",
        "on",
        "it",
        "you",
        "i",
        "a",
        "for",
        "we",
        "he",
        "she",
        "not",
        "this",
    ]
)


class Page:
    """The measures of a document; each is computed when a rule asks for it."""

    def __init__(self, text: str, language: str) -> None:
        self.text = text
        self.language = language

    @cached_property
    def prose(self) -> str:
        """The text without fenced code."""
        return _FENCED.sub("", self.text) if "```" in self.text or "~~~" in self.text else self.text

    @cached_property
    def is_code(self) -> bool:
        """Whether most of it is fenced code, to which no rule of prose applies."""
        return len(self.prose) < 0.3 * len(self.text)

    @cached_property
    def lines(self) -> list[str]:
        """Lines of the prose that hold something, without their margins."""
        return [line for line in map(str.strip, self.prose.split("\n")) if line]

    @cached_property
    def han(self) -> int:
        return count_characters(HAN, self.prose)

    @cached_property
    def words(self) -> list[str]:
        """What white space divides."""
        return self.prose.split()

    @cached_property
    def latin_words(self) -> list[str]:
        return _LATIN_WORD.findall(self.prose)

    @cached_property
    def units(self) -> int:
        """Length as people count it: characters of Chinese and words of what is written with spaces."""
        return self.han + len(self.latin_words)

    @cached_property
    def solid(self) -> int:
        """Characters that are no white space."""
        return sum(map(len, self.words))

    @cached_property
    def mean_word_length(self) -> float:
        return self.solid / max(1, len(self.words))

    @cached_property
    def letter_share(self) -> float:
        """Chinese characters and Latin letters among all that is neither white space nor a formula."""
        formulas = count_characters(_FORMULA, self.prose) if "$" in self.prose else 0
        return (self.han + sum(map(len, self.latin_words))) / max(1, self.solid - formulas)

    @cached_property
    def symbol_share(self) -> float:
        """Hash signs (but headings), ellipses and ornaments a unit."""
        symbols = len(_SYMBOL.findall(self.prose)) - len(_HEADING.findall("\n" + self.prose))
        return symbols / max(1, self.units)

    @cached_property
    def bullet_share(self) -> float:
        return len(_BULLET.findall(self.prose)) / max(1, len(self.lines))

    @cached_property
    def ellipsis_share(self) -> float:
        return len(_ELLIPSIS_END.findall(self.prose)) / max(1, len(self.lines))

    @cached_property
    def punctuated_share(self) -> float:
        """Lines that end in punctuation."""
        return len(_PUNCTUATED_END.findall(self.prose)) / max(1, len(self.lines))

    @cached_property
    def punctuation_share(self) -> float:
        """Marks a unit: a list of keywords has few, an ordinary text one in ten."""
        return len(_PUNCTUATION.findall(self.prose)) / max(1, self.units)

    @cached_property
    def sentence_share(self) -> float:
        """The quality of a text by its sentences: characters in well-formed ones among all."""
        pattern = _CHINESE_SENTENCE if self.language == "zh" else _ENGLISH_SENTENCE
        return count_characters(pattern, self.prose) / max(1, len(self.prose))

    @cached_property
    def function_words(self) -> int:
        """Different words without which neither language is written; two thousand characters are looked at."""
        sample = self.prose[:2000].lower()
        return len(_FUNCTION_ZH.intersection(sample)) + len(_FUNCTION_EN.intersection(sample.split()))

    @cached_property
    def mojibake_share(self) -> float:
        """Traces of a wrong decoding a character."""
        return len(_MOJIBAKE.findall(self.text)) / max(1, len(self.text))

    @cached_property
    def duplicate_line_share(self) -> float:
        """Characters in lines that were there before; lines of less than 6 characters do not count."""
        lines = [line for line in self.lines if len(line) >= 6]
        total = sum(map(len, lines))
        return (total - sum(map(len, set(lines)))) / max(1, total)

    @cached_property
    def compression(self) -> float:
        """Bytes after zlib among bytes before: a text that says the same again and again is below 0.2."""
        data = self.text.encode("utf-8")
        return len(zlib.compress(data, 1)) / max(1, len(data))

    @cached_property
    def word_characters(self) -> bytes:
        """UTF-32 of letters and digits alone: what tables are drawn with would repeat in every window."""
        return "".join(_WORD.findall(self.prose)).encode("utf-32-le")

    def repeated_ngrams(self, size: int) -> tuple[float, float]:
        """Of windows of `size` letters and digits: the share of characters in those that were there before, and in the
        most frequent one."""
        characters = np.frombuffer(self.word_characters, dtype=np.uint32)
        count = len(characters) - size + 1
        if count < 2:
            return 0.0, 0.0
        hashes = _window_hashes(characters, size)
        order = np.argsort(hashes)
        sorted_hashes = hashes[order]
        bounds = np.flatnonzero(np.concatenate(([True], sorted_hashes[1:] != sorted_hashes[:-1], [True])))
        runs = np.diff(bounds)
        repeats = np.ones(count, dtype=bool)
        repeats[np.minimum.reduceat(order, bounds[:-1])] = False  # the first of each is no repetition
        edges = np.zeros(len(characters) + 1, dtype=np.int64)
        starts = np.flatnonzero(repeats)
        edges[starts] += 1
        edges[starts + size] -= 1
        covered = int(np.count_nonzero(np.cumsum(edges[:-1])))
        longest = int(runs.max())
        return covered / len(characters), longest * size / len(characters) if longest > 2 else 0.0


def _window_hashes(characters: np.ndarray, size: int) -> np.ndarray:
    """A polynomial hash of each window, doubling its width: log2(size) passes instead of `size`."""
    with np.errstate(over="ignore"):
        width, power = 1, np.uint64(0x9E3779B97F4A7C15)
        hashes = (characters.astype(np.uint64) + np.uint64(1)) * np.uint64(0xBF58476D1CE4E5B9)
        while width * 2 <= size:
            hashes = hashes[:-width] * power + hashes[width:]
            width *= 2
            power = power * power
        if width < size:  # two windows of `width` that overlap, told apart by another factor
            hashes = hashes[: -(size - width)] * np.uint64(0x94D049BB133111EB) + hashes[size - width :]
    return hashes
