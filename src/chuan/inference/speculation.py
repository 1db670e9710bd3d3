"""Prompt lookup: drafts of the next tokens, copied from where the same few tokens were followed by them before.

In: the ids of a sequence so far. Out: ids that may come next, to be verified by the model in one step; and counts. No
second model (Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding). Knows neither sampling nor requests.
"""

from __future__ import annotations

from collections.abc import Sequence

LONGEST, SHORTEST = 4, 2
MAX_DRAFT = 8
FIRST_DRAFT = 4
PAUSE = 32
# Only this many of the last tokens are looked up, which bounds the memory of a request.
WINDOW = 8192


class PromptLookup:
    """The index of one sequence, and how its drafts did.

    The rule: a draft accepted in full doubles the next one's length (up to 8), one accepted to less than half halves
    it, and where that leaves nothing the request rests for 32 steps and begins again with 2.
    """

    def __init__(self) -> None:
        self.proposed = 0
        self.accepted = 0
        self._size = FIRST_DRAFT
        self._rest = 0
        self._follow: dict[tuple[int, ...], int] = {}  # n-gram -> the place behind its latest occurrence
        self._indexed = 0  # n-grams that end before this place are in the index

    def propose(self, token_ids: Sequence[int], limit: int) -> list[int]:
        """At most `limit` ids that followed the latest earlier occurrence of the last 4, 3 or 2 ids; often none."""
        self._update(token_ids)
        if self._rest:
            self._rest -= 1
            return []
        size, end = min(self._size, limit), len(token_ids)
        if size <= 0:
            return []
        for length in range(min(LONGEST, end - 1), SHORTEST - 1, -1):
            start = self._follow.get(tuple(token_ids[end - length :]))
            if start is not None:
                # Where the copy would run into the end it repeats itself, as the text does.
                return [token_ids[start + i % (end - start)] for i in range(size)]
        return []

    def record(self, proposed: int, accepted: int) -> None:
        """How the last draft did."""
        self.proposed += proposed
        self.accepted += accepted
        if accepted == proposed:
            self._size = min(2 * self._size, MAX_DRAFT)
        elif 2 * accepted < proposed:
            self._size //= 2
        if not self._size:
            self._size, self._rest = 2, PAUSE

    def _update(self, token_ids: Sequence[int]) -> None:
        """Takes in the n-grams of tokens that have come; one that ends the text has no follower yet."""
        first = max(self._indexed, len(token_ids) - 1 - WINDOW)
        for end in range(first, len(token_ids) - 1):
            for length in range(SHORTEST, LONGEST + 1):
                if end + 1 >= length:
                    self._follow[tuple(token_ids[end + 1 - length : end + 1])] = end + 1
                old = end - WINDOW
                if old + 1 >= length:
                    gram = tuple(token_ids[old + 1 - length : old + 1])
                    if self._follow.get(gram) == old + 1:
                        del self._follow[gram]
        self._indexed = max(self._indexed, len(token_ids) - 1)
