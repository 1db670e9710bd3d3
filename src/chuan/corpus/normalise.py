"""One way of writing for each text: Unicode, spaces, line ends; simplified characters on request.

In: any text. Out: the same text for a reader, with NFC, `\\n` at line ends, plain spaces, and no control characters.
Indents stay: code has them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

import opencc

from chuan.recipes import Settings

_LINE_ENDS = re.compile("\r\n?|[\u0085\u2028\u2029\v\f]")
_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f]")
# Controls but tab and newline; soft hyphens, zero-width spaces, marks of direction, byte order marks, noncharacters.
# The zero-width joiner stays, which emoji and Indic scripts are written with; so does U+FFFD, which rules look for.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufdd0-\ufdef"
    "\ufeff\ufff9-\ufffb\ufffe\uffff\U0001fffe\U0001ffff]"
)
# Chinese paragraphs are indented by two ideographic spaces.
_IDEOGRAPHIC_INDENT = re.compile("^[\u3000]+", re.MULTILINE)
_TRAILING = re.compile("[ \t]+$", re.MULTILINE)
_BLANK_LINES = re.compile("\n{4,}")


class NormaliseSettings(Settings):
    """How a text is written."""

    unicode: bool = True  # NFC; odd spaces, line ends, invisible characters
    simplify: bool = False  # traditional to simplified Chinese (OpenCC, t2s), of documents in Chinese


def normalise(text: str) -> str:
    """NFC, plain spaces and line ends, nothing invisible, two blank lines at most."""
    if not text.isascii():
        if not unicodedata.is_normalized("NFC", text):
            text = unicodedata.normalize("NFC", text)
        text = _SPACES.sub(" ", text)
    if not text.isascii() or "\r" in text or "\v" in text or "\f" in text:
        text = _LINE_ENDS.sub("\n", text)
    text = _INVISIBLE.sub("", text)
    if "\u3000" in text:
        text = _IDEOGRAPHIC_INDENT.sub("", text).replace("\u3000", " ")
    if " \n" in text or "\t\n" in text or text.endswith((" ", "\t")):
        text = _TRAILING.sub("", text)
    if "\n\n\n\n" in text:
        text = _BLANK_LINES.sub("\n\n\n", text)
    return text.strip("\n")


def build_simplifier() -> Callable[[str], str]:
    """A function from traditional to simplified Chinese."""
    return opencc.OpenCC("t2s").convert
