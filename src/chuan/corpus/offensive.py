"""Offensive text, by words that are rarely anything else.

In: a text and its language. Out: how many of the words it holds. English is matched by whole words, in any case;
Chinese, which has no spaces, by character strings that are not part of a harmless word. Short lists of our own: they
find text that is coarse throughout, and say nothing of a single line that hurts.
"""

from __future__ import annotations

import re

from pydantic import Field

from chuan.recipes import Settings

_ENGLISH = re.compile(
    r"(?:fuck(?:s|ed|er|ers|ing|in)?|motherfuck(?:er|ers|ing)|bullshit|shit(?:s|ty|ting|head)?|cunts?|(?:ass|arse)holes?|bitch(?:es|y)?"
    r"|bastards?|dickheads?|wankers?|twats?|whores?|sluts?|cocksuckers?|blowjobs?|cumshots?|gangbangs?"
    r"|nigg(?:er|a)s?|fagg?ots?|retards?|kikes?|spics?|chinks?|trann(?:y|ies))\b"
)
_CHINESE = re.compile(
    "操你[妈大爷]|肏|[草艹日]你[妈大爷]|[他你尼]妈的|妈[了个]*[逼屄]|傻[逼屄叉]|煞笔|牛屄|狗[日娘]的|狗杂种|王八蛋|婊子|贱[人货]|骚货|荡妇"
    "|鸡巴|龟孙子|去死吧|死全家|裸聊|约炮|轮奸|淫[荡水穴]|支那[人猪]|黑鬼|死基佬"
)


class OffensiveSettings(Settings):
    """When a document counts as offensive. Both bounds have to be met; off, unless the recipe says `enabled`."""

    enabled: bool = False
    min_hits: int = Field(default=3, ge=1)
    # C4 dropped a page for one word of a list, and lost much about health and minorities with it
    # (https://arxiv.org/abs/2104.08758, section 5.3): a share asks for a text that is coarse throughout.
    per_thousand: float = Field(default=5.0, gt=0)  # of English words, or of Chinese characters


def count_offensive(text: str, language: str) -> int:
    """How many words of the language's list a text holds."""
    if language == "zh":
        return len(_CHINESE.findall(text))
    text = text.lower()
    # A word boundary at the head of the pattern would have it tried at every letter.
    starts = (match.start() for match in _ENGLISH.finditer(text))
    return sum(not (start and (text[start - 1].isalnum() or text[start - 1] == "_")) for start in starts)


def is_offensive(text: str, language: str, settings: OffensiveSettings) -> bool:
    hits = count_offensive(text, language)
    if hits < settings.min_hits:
        return False
    units = len(text) if language == "zh" else len(text.split())
    return hits * 1000 >= settings.per_thousand * units
