"""Paragraphs and sentences that are a site's and not its text's: notices of cookies and rights, calls to subscribe.

In: a text and its language. Out: the text without them, and how many went. A short paragraph goes whole, of a longer
one the sentence alone. Fenced code is left as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_SHORT = {"zh": 60, "en": 160}  # characters of a paragraph that goes whole
# C4 (https://arxiv.org/abs/1910.10683, section 2.2) drops lines on cookies, policies and scripts; the Chinese ones are
# what pages in Chinese say in their place. `javascript` alone is no sign: pages on programming have it.
# Of lower-case text; each pattern begins with a letter or a line's end, which lets the search skip to it.
_ENGLISH = re.compile(
    r"(?:uses?|use of|accept(?: all)?|our) cookies\b|cookie policy\b|(?:enable|disabled?|requires?) javascript\b"
    r"|all rights reserved\b|terms of (?:use|service)\b.*\bprivacy policy\b|lorem ipsum\b"
)
_ENGLISH_START = re.compile(
    r"\n(?:(?:copyright |©)[ ©\d]|share (?:this|on)\b|tweet this\b|follow us\b|click here to\b|subscribe to our\b"
    r"|sign up for our\b|log ?in to (?:comment|reply)\b|leave a (?:reply|comment)\b|read more\b"
    r"|related (?:posts|articles)\b|(?:previous|next) (?:post|article)\b)"
)
_CHINESE = re.compile(
    "版权所有|未经(?:授权|许可|允许)[^\n。]{0,12}(?:转载|使用|复制)|转载请(?:注明|保留|联系)|[京沪粤浙苏鲁川渝津冀鄂湘闽皖]icp[备证]"
    "|(?:扫码|长按|扫一扫|扫描)[^\n。]{0,12}(?:关注|二维码|添加|下载)|(?:关注|搜索)[^\n。]{0,10}(?:公众号|视频号)|点击(?:上方|下方|蓝字|查看更多|展开全文|阅读原文)"
    "|请(?:启用|开启|允许) ?(?:javascript|cookie)|本站(?:使用|采用) ?cookie"
)
_CHINESE_START = re.compile(
    "\n(?:上一[篇页章]|下一[篇页章]|相关(?:阅读|推荐|文章)|猜你喜欢|返回(?:顶部|首页|目录)|分享到|责任编辑|(?:本文)?来源[:：]|免责声明)"
)
_CHINESE_SENTENCE = re.compile("[^。！？!?；;]*[。！？!?；;]?")
_ENGLISH_SENTENCE = re.compile(r".*?(?:[.!?](?=\s)\s*|$)")


def drop_boilerplate(text: str, language: str) -> tuple[str, int]:
    """The text without boilerplate, and how many paragraphs or sentences were dropped."""
    patterns = (_CHINESE, _CHINESE_START) if language == "zh" else (_ENGLISH, _ENGLISH_START)
    if not _has_any(patterns, text):
        return text, 0
    kept: list[str] = []
    dropped, fence = 0, ""
    for line in text.split("\n"):
        mark = line.lstrip()[:3]
        if mark in ("```", "~~~") and fence in ("", mark):
            fence = "" if fence else mark
        if fence or not _has_any(patterns, line):
            kept.append(line)
            continue
        rest = "" if len(line) <= _SHORT[language] else _drop_sentences(line, patterns[0], language)
        dropped += rest != line
        if rest.strip():
            kept.append(rest)
    return "\n".join(kept), dropped


def _has_any(patterns: Sequence[re.Pattern[str]], text: str) -> bool:
    text = "\n" + text.lower()
    return any(pattern.search(text) for pattern in patterns)


def _drop_sentences(line: str, pattern: re.Pattern[str], language: str) -> str:
    sentences = (_CHINESE_SENTENCE if language == "zh" else _ENGLISH_SENTENCE).findall(line)
    return "".join(sentence for sentence in sentences if not pattern.search(sentence.lower()))
