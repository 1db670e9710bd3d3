"""A bounded, script-aware sample of texts, and the words in it.

In: texts, one at a time, however many. Out: the same sample whatever their order, within a budget of memory for each
kind of text, and how often each of its words occurs. Knows no files and no tokenizer.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Literal, get_args

Kind = Literal["han", "latin", "code", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# The scripts as ranges: Han with kana, and Latin with the marks that follow its letters. Where sentencepiece's table
# says otherwise of a rare character, a piece that might have crossed the border is not learned; nothing else happens.
_HAN = (
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_LATIN = "A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u0300-\u036f\u1e00-\u1eff"
_DIGITS = "0-9\uff10-\uff19"
_WORD = re.compile(
    f" {{0,32}}(?:[{_HAN}]{{1,256}}|[{_LATIN}]{{1,256}}|[{_DIGITS}]|[^ \n\t{_HAN}{_LATIN}{_DIGITS}]{{1,64}})| {{1,32}}"
)
_CHUNK = re.compile(r"[\s\S]{1,2000}(?:\n|\Z)|[\s\S]{1,2000}(?<=[。！？.!?\s])|[\s\S]{1,2000}")
_FENCE = re.compile(r"^[ \t]*(?:```|~~~).*$", re.MULTILINE)
_HAN_LETTER, _LATIN_LETTER = re.compile(f"[{_HAN}]"), re.compile(f"[{_LATIN}]")
_LOOKED_AT = 400  # characters of a chunk by which its kind is told
_CODE_MARKS = "{}[]();=<>_#&|\\$"
_CODE_SHARE = 0.06  # of a chunk's characters
_OVERHEAD = 160  # bytes that Python needs for a chunk beside its text
# What sentencepiece gives a meaning of its own: it would throw the whole line away, or end it.
_UNUSABLE = re.compile("[\0\t\n\x1f\u2585]")


def cut_text(text: str) -> Iterator[tuple[Kind, str]]:
    """Chunks of up to 2,000 characters, cut at the ends of lines or sentences where there are any, with their kinds."""
    parts = _FENCE.split(text)
    for index, part in enumerate(parts):
        # What a fence leaves open at the end of a text is no code for certain.
        fenced = index % 2 == 1 and index < len(parts) - 1
        for chunk in _CHUNK.findall(part):
            if not chunk.isspace():
                yield ("code" if fenced else tell_kind(chunk)), chunk


def tell_kind(chunk: str) -> Kind:
    """What most of a chunk is; a Han character counts as much as three letters."""
    start = chunk[:_LOOKED_AT]
    if sum(map(start.count, _CODE_MARKS)) >= _CODE_SHARE * len(start):
        return "code"
    han = 0 if start.isascii() else 3 * len(_HAN_LETTER.findall(start))
    latin = len(_LATIN_LETTER.findall(start))
    if 3 * max(han, latin) < len(start):
        return "other"
    return "han" if han > latin else "latin"


class TextSample:
    """The chunks with the smallest random keys, as many as the budget of their kind holds.

    A key is made from the chunk itself, so equal chunks count once and the order of the texts changes nothing.
    """

    def __init__(self, budgets: Mapping[Kind, int], seed: int = 0) -> None:
        """`budgets` are bytes of memory."""
        self._budgets = dict(budgets)
        self._seed = seed.to_bytes(8, "little", signed=True)
        self._heaps: dict[Kind, list[tuple[float, bytes]]] = {kind: [] for kind in budgets}
        self._keys: dict[Kind, set[float]] = {kind: set() for kind in budgets}
        self._limits: dict[Kind, float] = dict.fromkeys(budgets, math.inf)
        self._sizes: dict[Kind, int] = dict.fromkeys(budgets, 0)
        self.seen: Counter[Kind] = Counter()  # bytes of text

    def add(self, text: str, weight: float = 1.0) -> None:
        """Offers a text; one of weight 2 is taken twice as likely where a budget cannot hold everything."""
        for kind, chunk in cut_text(text):
            self.add_chunk(kind, chunk, weight)

    def add_chunk(self, kind: Kind, chunk: str, weight: float = 1.0) -> None:
        """Offers one chunk of a kind that has a budget."""
        data = chunk.encode("utf-8", "ignore")  # half of a UTF-16 pair is no text
        self.seen[kind] += len(data)
        number = int.from_bytes(hashlib.blake2b(data, digest_size=8, key=self._seed).digest(), "little")
        # Efraimidis and Spirakis 2006: the smallest of such keys are a sample by weight, without replacement.
        key = -math.log((number + 1) / 2**64) / weight
        keys, heap = self._keys[kind], self._heaps[kind]
        if key >= self._limits[kind] or key in keys:
            return
        keys.add(key)
        heapq.heappush(heap, (-key, data))
        self._sizes[kind] += len(data) + _OVERHEAD
        while self._sizes[kind] > self._budgets[kind]:
            largest, dropped = heapq.heappop(heap)
            keys.discard(-largest)
            self._limits[kind] = -largest
            self._sizes[kind] -= len(dropped) + _OVERHEAD

    def kept(self, kind: Kind) -> int:
        """Bytes of text that are in the sample."""
        return self._sizes[kind] - _OVERHEAD * len(self._heaps[kind])

    def chunks(self, kind: Kind) -> list[str]:
        """The sample of one kind, in the order of its keys."""
        return [data.decode("utf-8") for _, data in sorted(self._heaps[kind], reverse=True)]

    def take_words(self, cut_out: Collection[str] = ()) -> Counter[str]:
        """How often each word occurs in the sample, which is empty afterwards."""
        counts: Counter[str] = Counter()
        for kind in self._budgets:
            heap, self._heaps[kind] = self._heaps[kind], []
            counts.update(count_words((data.decode("utf-8") for _, data in heap), cut_out))
        return counts


def count_words(texts: Iterable[str], cut_out: Collection[str] = ()) -> Counter[str]:
    """The words of texts: what stands between places that no piece crosses, with the spaces before it.

    Those places are the ends of runs of one script, each digit, line ends, tabs and the pieces in `cut_out`. To learn
    pieces from words and their counts is the same as to learn them from the texts, in a fraction of the memory.
    """
    counts: Counter[str] = Counter()
    others = sorted(set(cut_out) - {"\n", "\t"}, key=lambda piece: (-len(piece), piece))
    pattern = re.compile("|".join(map(re.escape, others))) if others else None
    for text in texts:
        text = text.replace("▁", " ")  # which is what sentencepiece takes it for
        counts.update(_WORD.findall(pattern.sub("\n", text) if pattern else text))
    for word in [word for word in counts if _UNUSABLE.search(word)]:
        del counts[word]
    return counts
