"""Rules of quality in both languages; each says by its name why a document leaves.

In: a document and its language. Out: `rule:NAME`, or None where it stays. Chinese is counted in characters, English in
words (`Page.units`); fenced code is taken out before, and a document that is mostly code meets the rules of code alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field

from chuan.corpus.page import Page
from chuan.recipes import Settings

RuleName = Literal[
    "too_short", "too_long", "mojibake", "duplicate_lines", "repeated_text", "word_length", "few_letters", "symbols",
    "bullets", "ellipses", "unpunctuated_lines", "no_punctuation", "no_function_words", "no_sentences",
]  # fmt: skip
_LONG = 200  # units; the shares of a shorter text say little


class Limits(Settings):
    """The bounds of the rules. Gopher: https://arxiv.org/abs/2112.11446, table A1. C4: https://arxiv.org/abs/1910.10683,
    section 2.2. FineWeb: https://arxiv.org/abs/2406.17557, section 3.5."""

    off: list[RuleName] = Field(default=[])  # rules that are not applied
    min_length: int = 5  # units. Gopher: 50 words, of web pages; dialogues and dictionary entries are shorter
    max_length: int = 100_000  # Gopher
    max_mojibake: float = 0.002  # a character; ours
    max_duplicate_lines: float = 0.30  # of characters. Gopher: 0.20 of characters, 0.30 of lines
    ngram: int = 50  # characters of the windows that repetition is counted in
    max_repeated: float = 0.40  # of characters; Gopher: 0.10 to 0.15 in 5 to 10 words, which forms and manuals exceed
    max_top_ngram: float = 0.20  # Gopher: 0.16 to 0.20 for 2 to 4 words
    min_letters: float = 0.50  # of characters that are no white space
    max_symbols: float = 0.10  # a unit; Gopher
    max_bullets: float = 0.90  # of lines; Gopher
    max_ellipses: float = 0.50  # of lines. Gopher: 0.30, of web pages; people in dialogues trail off
    min_punctuated: float = 0.05  # of lines. FineWeb: 0.12, of web pages; manuals end headings and lists without
    min_function_words: int = 2  # of long texts; Gopher
    min_sentences: float = 0.05  # of characters in well-formed sentences, in long texts; ours


class EnglishLimits(Limits):
    """Of English."""

    min_word_length: float = 2.5  # Gopher: 3 to 10, of web pages; dialogues with sums are shorter
    max_word_length: float = 12.0


class ChineseLimits(Limits):
    """Of Chinese."""

    max_length: int = 200_000
    ngram: int = 20  # a character of Chinese says what two or three letters do
    min_punctuation: float = 0.01  # marks a unit in long texts: below, it is a list of keywords; ours


class RuleSettings(Settings):
    """Rules by language, and whether paragraphs that are no text of the page are dropped before."""

    enabled: bool = True
    boilerplate: bool = True
    zh: ChineseLimits = Field(default_factory=ChineseLimits)
    en: EnglishLimits = Field(default_factory=EnglishLimits)


def find_reason(text: str, language: str, settings: RuleSettings) -> str | None:
    """The first rule that a document breaks, as `rule:NAME`."""
    page = Page(text, language)
    limits: Limits = settings.zh if language == "zh" else settings.en
    for name, breaks in _RULES:
        if name not in limits.off and breaks(page, limits):
            return f"rule:{name}"
    return None


def _is_too_short(page: Page, limits: Limits) -> bool:
    return page.units < limits.min_length and not (page.is_code and len(page.text) > 10 * limits.min_length)


def _is_too_long(page: Page, limits: Limits) -> bool:
    return page.units > limits.max_length


def _is_mojibake(page: Page, limits: Limits) -> bool:
    return not page.text.isascii() and page.mojibake_share > limits.max_mojibake


def _has_duplicate_lines(page: Page, limits: Limits) -> bool:
    return page.duplicate_line_share > limits.max_duplicate_lines


def _repeats_itself(page: Page, limits: Limits) -> bool:
    # Where two fifths are repetitions, zlib leaves a third at most; counting windows costs ten times as much.
    if len(page.text) < 4 * limits.ngram or page.compression > 0.42:
        return False
    repeated, _ = page.repeated_ngrams(limits.ngram)
    if repeated > limits.max_repeated:
        return True
    return page.units > _LONG and page.repeated_ngrams(limits.ngram // 4)[1] > limits.max_top_ngram


def _has_odd_words(page: Page, limits: Limits) -> bool:
    return (
        isinstance(limits, EnglishLimits)
        and not page.is_code
        and not limits.min_word_length <= page.mean_word_length <= limits.max_word_length
    )


def _has_few_letters(page: Page, limits: Limits) -> bool:
    return not page.is_code and page.letter_share < limits.min_letters


def _has_symbols(page: Page, limits: Limits) -> bool:
    return not page.is_code and page.symbol_share > limits.max_symbols


def _is_list(page: Page, limits: Limits) -> bool:
    return not page.is_code and len(page.lines) >= 10 and page.bullet_share > limits.max_bullets


def _trails_off(page: Page, limits: Limits) -> bool:
    return not page.is_code and len(page.lines) >= 5 and page.ellipsis_share > limits.max_ellipses


def _has_bare_lines(page: Page, limits: Limits) -> bool:
    return (
        not page.is_code
        and page.units > _LONG
        and len(page.lines) >= 10
        and page.punctuated_share < limits.min_punctuated
    )


def _has_no_punctuation(page: Page, limits: Limits) -> bool:
    return (
        isinstance(limits, ChineseLimits)
        and not page.is_code
        and page.units > _LONG
        and page.punctuation_share < limits.min_punctuation
    )


def _has_no_function_words(page: Page, limits: Limits) -> bool:
    return not page.is_code and page.units > _LONG and page.function_words < limits.min_function_words


def _has_no_sentences(page: Page, limits: Limits) -> bool:
    return not page.is_code and page.units > _LONG and page.sentence_share < limits.min_sentences


# In this order: what costs little and takes much comes first.
_RULES: list[tuple[RuleName, Callable[[Page, Limits], bool]]] = [
    ("too_short", _is_too_short),
    ("too_long", _is_too_long),
    ("mojibake", _is_mojibake),
    ("few_letters", _has_few_letters),
    ("word_length", _has_odd_words),
    ("symbols", _has_symbols),
    ("bullets", _is_list),
    ("ellipses", _trails_off),
    ("unpunctuated_lines", _has_bare_lines),
    ("no_punctuation", _has_no_punctuation),
    ("no_function_words", _has_no_function_words),
    ("no_sentences", _has_no_sentences),
    ("duplicate_lines", _has_duplicate_lines),
    ("repeated_text", _repeats_itself),
]
