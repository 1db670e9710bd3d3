"""Pages: given, shared, found again, and never to two writers."""

import random

import pytest

from chuan.inference import pages
from chuan.inference.pages import PAGE, PagePool, count_pages, extend_keys


def make_keys(token_ids: list[int]) -> list[bytes]:
    keys: list[bytes] = []
    extend_keys(keys, token_ids, len(token_ids))
    return keys


def take(pool: PagePool, token_ids: list[int], limit: int | None = None, spare: int = 0):
    return pool.acquire(token_ids, make_keys(token_ids), len(token_ids) - 1 if limit is None else limit, spare)


def give_back(pool: PagePool, held: list[int], token_ids: list[int]) -> None:
    """As after computing all of them."""
    pool.publish(held, token_ids, make_keys(token_ids), 0, len(token_ids) // PAGE)
    pool.release(held, token_ids, make_keys(token_ids), len(token_ids))


def test_too_few_is_an_answer_and_changes_nothing():
    pool = PagePool(4)
    grant = take(pool, list(range(3 * PAGE)))
    assert (len(set(grant.pages)), grant.tokens, grant.copy) == (3, 0, None)
    assert take(pool, list(range(2 * PAGE))) is None
    assert take(pool, [1], spare=1) is None
    held = list(grant.pages)
    assert not pool.grow(held, 5 * PAGE)
    assert (held, pool.available) == (grant.pages, 1)
    assert pool.grow(held, 3 * PAGE + 1)
    assert (len(set(held)), pool.available) == (4, 0)


def test_what_was_computed_is_found_by_whoever_begins_alike():
    pool = PagePool(8)
    first = list(range(1000, 1000 + 2 * PAGE + 10))
    held = take(pool, first).pages
    pool.publish(held, first, make_keys(first), 0, 2)  # while the first still holds them
    second = take(pool, first[: 2 * PAGE] + [5] * 70)
    assert (second.pages[:2], second.tokens, second.copy) == (held[:2], 2 * PAGE, None)
    assert not set(second.pages[2:]) & set(held)
    assert take(pool, [9, *first[1:]]).tokens == 0  # the second page's ids are the same, what comes before is not


def test_the_rest_of_a_page_is_continued_or_copied():
    pool = PagePool(9)
    text = list(range(PAGE + 20))
    held = take(pool, text).pages
    give_back(pool, held, text)
    longer = take(pool, text + [7] * 9)
    assert (longer.pages, longer.tokens, longer.copy) == (held, PAGE + 20, None)
    give_back(pool, longer.pages, text + [7] * 9)
    other = take(pool, text[: PAGE + 5] + [8] * 9)  # parts ways in the middle of the second page
    assert (other.pages[0], other.tokens) == (held[0], PAGE + 5)
    assert other.copy == (held[1], other.pages[1])
    inside = take(pool, [*text[:30], 8])  # and in the middle of a full page that somebody holds
    assert (inside.tokens, inside.copy) == (30, (held[0], inside.pages[0]))


def test_the_last_token_is_always_left_to_run():
    pool = PagePool(8)
    text = list(range(2 * PAGE))
    give_back(pool, take(pool, text).pages, text)
    again = take(pool, text)
    assert (again.tokens, again.copy is not None) == (2 * PAGE - 1, True)
    assert take(pool, text, limit=0).tokens == 0
    assert take(pool, text, limit=PAGE).tokens == PAGE


def test_the_longest_unused_goes_first_and_the_end_before_the_beginning():
    pool = PagePool(6)
    old, new = list(range(3 * PAGE)), list(range(1000, 1000 + 3 * PAGE))
    give_back(pool, take(pool, old).pages, old)
    give_back(pool, take(pool, new).pages, new)
    assert pool.available == 6
    assert take(pool, [3] * PAGE) is not None
    assert pool.count_shared(old, make_keys(old), len(old)) == 2
    assert pool.count_shared(new, make_keys(new), len(new)) == 3


def test_equal_digests_of_different_ids_are_not_believed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pages, "chain_key", lambda parent, token_ids: b"same")
    pool = PagePool(8)
    give_back(pool, take(pool, [1] * PAGE).pages, [1] * PAGE)
    assert take(pool, [2] * (PAGE + 1)).tokens == 0


@pytest.mark.parametrize("seed", range(20))
def test_nobody_writes_to_what_another_reads(seed: int):
    """A random life: contents are tracked by hand and must always be what the pool says they are."""
    rng = random.Random(seed)
    pool = PagePool(12)
    memory: list[list[int | None]] = [[None] * PAGE for _ in range(12)]
    living: list[tuple[list[int], list[int]]] = []
    for _ in range(300):
        if living and rng.random() < 0.5:
            held, token_ids = living.pop(rng.randrange(len(living)))
            read = [token_id for page in held for token_id in memory[page]][: len(token_ids)]
            assert read == token_ids
            pool.release(held, token_ids, make_keys(token_ids), len(token_ids))
        else:
            token_ids = [rng.randrange(2)] * rng.randrange(1, 3 * PAGE) + [rng.randrange(3)] * rng.randrange(1, PAGE)
            grant = take(pool, token_ids)
            if grant is None:
                continue
            if grant.copy is not None:
                memory[grant.copy[1]] = list(memory[grant.copy[0]])
            for position in range(grant.tokens, len(token_ids)):
                memory[grant.pages[position // PAGE]][position % PAGE] = token_ids[position]
            full = len(token_ids) // PAGE
            pool.publish(grant.pages, token_ids, make_keys(token_ids), grant.tokens // PAGE, full)
            living.append((grant.pages, token_ids))
        holders = [0] * 12
        for held, _ in living:
            for page in held:
                holders[page] += 1
        assert pool.available == holders.count(0)
    for held, token_ids in living:
        pool.release(held, token_ids, make_keys(token_ids), len(token_ids))
    assert pool.available == 12
    assert count_pages(0) == 0
