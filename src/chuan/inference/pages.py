"""Which page of the cache belongs to whom, and which pages can be used again by a prompt that begins alike.

In: token ids and page numbers. Out: page numbers. Knows no tensors and no requests. A page holds the keys and values of
`PAGE` consecutive tokens of one sequence; what they are depends on every token before them, so a page is known by a
digest of all ids up to its end.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from chuan.sequences import count_common

PAGE = 64
ROOT = b""


@dataclass(frozen=True)
class _Content:
    """What a page holds: its own ids, and the digests of the ids before it (`parent`) and up to its end (`key`)."""

    parent: bytes
    key: bytes
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Grant:
    """Pages for a sequence: the first `tokens` are on them, once what `copy` says (source, target) is copied."""

    pages: list[int]
    tokens: int
    copy: tuple[int, int] | None


class PagePool:
    """Hands out `count` pages and remembers what was in them after they come back.

    A page that nobody holds but whose content is known stays findable until its memory is needed; the one that was used
    longest ago goes first. Several sequences may hold a full page at once; nobody writes to it.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._holders = [0] * count
        self._contents: list[_Content | None] = [None] * count
        self._free = dict.fromkeys(range(count))
        self._idle: dict[int, None] = {}  # known content, no holder; least recently used first
        self._full: dict[bytes, int] = {}
        self._children: dict[bytes, set[int]] = {}

    @property
    def available(self) -> int:
        """How many pages can be had."""
        return len(self._free) + len(self._idle)

    def count_shared(self, token_ids: Sequence[int], keys: Sequence[bytes], limit: int) -> int:
        """How many full pages among the first `limit` tokens are known already."""
        return len(self._find_full(token_ids, keys, limit))

    def acquire(self, token_ids: Sequence[int], keys: Sequence[bytes], limit: int, spare: int) -> Grant | None:
        """Pages for all the ids, the known ones among the first `limit` with their content; None if there are too few.

        `keys` are the digests of the ids' full pages. `spare` pages must be left over for others.
        """
        pages = self._find_full(token_ids, keys, limit)
        start = len(pages) * PAGE
        parent = keys[len(pages) - 1] if pages else ROOT
        tail, tokens = self._find_tail(parent, token_ids[start : min(start + PAGE, limit)])
        # A page that others may want stays as it is and is copied; one left unfinished is nobody's, and is continued.
        continued = tail is not None and tokens == len(self._ids(tail)) < PAGE
        if tail is not None and continued:
            pages.append(tail)
        missing = count_pages(len(token_ids)) - len(pages)
        if missing > self.available - sum(page in self._idle for page in pages) - spare:
            return None
        for page in pages:
            self._idle.pop(page, None)
            self._holders[page] += 1
        if tail is not None and continued:
            self._forget(tail)
        taken = len(pages)
        for _ in range(missing):
            pages.append(self._take(pages[-1] if pages else None))
        copy = None if tail is None or continued else (tail, pages[taken])
        return Grant(pages, start + tokens, copy)

    def grow(self, pages: list[int], tokens: int) -> bool:
        """Appends pages until there is room for so many tokens; False, and nothing done, where there are too few."""
        missing = count_pages(tokens) - len(pages)
        if missing > self.available:
            return False
        for _ in range(missing):
            pages.append(self._take(pages[-1] if pages else None))
        return True

    def publish(
        self, pages: Sequence[int], token_ids: Sequence[int], keys: Sequence[bytes], start: int, end: int
    ) -> None:
        """Makes the pages `start` to `end` of a sequence findable; they are full and computed."""
        for index in range(start, end):
            if keys[index] not in self._full:  # else another sequence has computed the same meanwhile
                parent = keys[index - 1] if index else ROOT
                self._remember(pages[index], parent, keys[index], token_ids[index * PAGE : (index + 1) * PAGE])
                self._full[keys[index]] = pages[index]

    def release(self, pages: Sequence[int], token_ids: Sequence[int], keys: Sequence[bytes], computed: int) -> None:
        """Takes a sequence's pages back; `computed` of its tokens are on them, the full pages published.

        The last page, partly filled, becomes findable too: a next turn or a second try goes on from there.
        """
        full = computed // PAGE
        rest = tuple(token_ids[full * PAGE : computed])
        parent = keys[full - 1] if full else ROOT
        if rest and not any(self._ids(page)[: len(rest)] == rest for page in self._children.get(parent, ())):
            self._remember(pages[full], parent, chain_key(parent, rest), rest)
        for page in reversed(pages):  # a page is of no use without those before it: the last ones are to go first
            self._holders[page] -= 1
            if not self._holders[page]:
                (self._free if self._contents[page] is None else self._idle)[page] = None

    def _find_full(self, token_ids: Sequence[int], keys: Sequence[bytes], limit: int) -> list[int]:
        pages: list[int] = []
        for index in range(limit // PAGE):
            page = self._full.get(keys[index])
            if page is None or self._ids(page) != tuple(token_ids[index * PAGE : (index + 1) * PAGE]):
                break
            pages.append(page)
        return pages

    def _find_tail(self, parent: bytes, wanted: Sequence[int]) -> tuple[int | None, int]:
        """The page that begins most like `wanted`, and how many tokens agree."""
        best, most = None, 0
        for page in self._children.get(parent, ()):
            same = count_common(self._ids(page), wanted)
            if same > most:
                best, most = page, same
        return best, most

    def _ids(self, page: int) -> tuple[int, ...]:
        content = self._contents[page]
        return content.token_ids if content is not None else ()

    def _take(self, after: int | None) -> int:
        """A page to write to: the one `after` the last, if it is free (one piece is read without copying)."""
        if after is not None and after + 1 in self._free:
            page = after + 1
            del self._free[page]
        elif self._free:
            page = next(iter(self._free))
            del self._free[page]
        else:
            page = next(iter(self._idle))
            del self._idle[page]
            self._forget(page)
        self._holders[page] = 1
        return page

    def _remember(self, page: int, parent: bytes, key: bytes, token_ids: Sequence[int]) -> None:
        self._contents[page] = _Content(parent, key, tuple(token_ids))
        self._children.setdefault(parent, set()).add(page)

    def _forget(self, page: int) -> None:
        content = self._contents[page]
        assert content is not None
        self._contents[page] = None
        if self._full.get(content.key) == page:
            del self._full[content.key]
        siblings = self._children[content.parent]
        siblings.discard(page)
        if not siblings:
            del self._children[content.parent]


def count_pages(tokens: int) -> int:
    """How many pages so many tokens take."""
    return -(-tokens // PAGE)


def extend_keys(keys: list[bytes], token_ids: Sequence[int], tokens: int) -> None:
    """Appends the digests of the full pages of the first `tokens` ids that `keys` does not have yet."""
    for index in range(len(keys), tokens // PAGE):
        keys.append(chain_key(keys[-1] if keys else ROOT, token_ids[index * PAGE : (index + 1) * PAGE]))


def chain_key(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """A digest of the ids so far. Cryptographic: nobody can make up a prompt that finds another one's pages."""
    return hashlib.blake2b(array("q", token_ids).tobytes(), key=parent, digest_size=16).digest()
