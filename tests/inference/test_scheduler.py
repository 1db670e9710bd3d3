"""What runs when: chunks, memory, who waits for whom. The toy model's answers tell whether a page was mixed up."""

import random

import pytest

from chuan.errors import ChuanError
from chuan.inference.engine import Engine
from chuan.inference.pages import PAGE
from chuan.inference.request import Generation, Request
from chuan.inference.runner import CHUNK
from chuan.inference.sampling import SamplingOptions
from chuan.inference.scheduler import MAX_RUNNING
from tests.support.toy_runner import ToyRunner, ToyTokenizer, answer


def build_engine(page_count: int, speculate: bool = True) -> tuple[Engine, ToyRunner]:
    runner = ToyRunner(page_count)
    return Engine(runner, ToyTokenizer(), speculate), runner


def build_request(engine: Engine, prompt: list[int], new_tokens: int) -> Generation:
    return engine.build_generation(prompt, SamplingOptions(max_new_tokens=new_tokens), frozenset())


def draw(rng: random.Random, size: int) -> list[int]:
    return [rng.randrange(26) for _ in range(size)]


def cuts(runner: ToyRunner, prompt: list[int]) -> list[tuple[int, int]]:
    """Where the pieces of a prompt began and ended; ten ids or more tell prompts apart."""
    found = []
    for pieces in runner.steps:
        for piece in pieces:
            if (
                len(piece.token_ids) >= 10
                and list(piece.token_ids) == prompt[piece.past : piece.past + len(piece.token_ids)]
            ):
                found.append((piece.past, piece.past + len(piece.token_ids)))
    return found


def test_a_runner_says_how_much_it_reads_at_a_time():
    prompt = draw(random.Random(0), 900)
    runner = ToyRunner(200)
    runner.chunk = 512
    engine = Engine(runner, ToyTokenizer(), False)
    engine.complete([build_request(engine, prompt, 1)])
    assert cuts(runner, prompt) == [(0, 512), (512, 900)]


def test_a_prompt_is_cut_at_the_same_places_in_any_company():
    rng = random.Random(0)
    prompt = draw(rng, 900)
    expected = [(0, CHUNK), (CHUNK, 2 * CHUNK), (2 * CHUNK, 3 * CHUNK), (3 * CHUNK, 900)]
    engine, runner = build_engine(200)
    engine.complete([build_request(engine, prompt, 1)])
    assert cuts(runner, prompt) == expected
    engine, runner = build_engine(200)
    company = [build_request(engine, draw(rng, rng.randrange(1, 700)), 50) for _ in range(12)]
    for request in company[:6]:
        engine.add(request)
    for _ in range(9):
        engine.step()
    engine.complete([build_request(engine, prompt, 1), *company[6:]])
    assert cuts(runner, prompt) == expected
    assert max(sum(len(piece.token_ids) for piece in pieces) for pieces in runner.steps) <= 2 * CHUNK
    assert max(map(len, runner.steps)) > 6
    again = [*prompt[: PAGE + 9], *draw(rng, 500)]  # what is in the cache already changes only where the first begins
    runner.steps.clear()
    engine.complete([build_request(engine, again, 1)])
    assert cuts(runner, again) == [(PAGE + 9, CHUNK), (CHUNK, 2 * CHUNK), (2 * CHUNK, len(again))]


def test_who_generates_goes_on_while_others_read():
    engine, _ = build_engine(200, speculate=False)
    first = build_request(engine, [1, 2, 3], 60)
    engine.add(first)
    engine.step()
    for _ in range(8):
        engine.add(build_request(engine, draw(random.Random(1), 1000), 1))
    for count in range(2, 20):
        engine.step()
        assert first.completion_tokens == count


def test_no_more_run_at_once_than_leave_room_for_a_chunk():
    assert 2 * CHUNK - MAX_RUNNING >= CHUNK
    engine, runner = build_engine(300)
    requests = [build_request(engine, [n % 26, n // 26, 3], 20) for n in range(100)]
    engine.complete(requests)
    assert max(map(len, runner.steps)) == MAX_RUNNING
    for n, request in enumerate(requests):
        assert request.completion_ids == answer([n % 26, n // 26, 3], 20)


def test_a_shared_beginning_is_computed_once():
    """64 questions behind the same examples, asked at once: the first reads the examples, the others wait for them."""
    rng = random.Random(2)
    examples = draw(rng, 10 * PAGE)
    prompts = [examples + draw(rng, 40) for _ in range(64)]
    engine, runner = build_engine(200)
    requests = [engine.build_scoring(prompt, 1) for prompt in prompts]
    engine.complete(requests)
    assert [request.cached_tokens for request in requests] == [0] + [len(examples)] * 63
    assert sum(len(piece.token_ids) for pieces in runner.steps for piece in pieces) == len(examples) + 64 * 40
    for prompt, request in zip(prompts, requests, strict=True):
        assert [int(request.logits.argmax())] == answer(prompt, 1)
    unaligned = [examples + [5] * 30 + draw(rng, 20) for _ in range(3)]
    requests = [engine.build_scoring(prompt, 1) for prompt in unaligned]
    engine.complete(requests[:1])
    engine.complete(requests[1:])
    assert [request.cached_tokens for request in requests[1:]] == [
        len(examples) + 30
    ] * 2  # the rest of a page is copied


def test_whoever_waits_for_a_page_goes_on_when_its_author_leaves():
    examples = draw(random.Random(3), 5 * CHUNK)
    engine, _ = build_engine(200)
    author, waiter = (build_request(engine, [*examples, n], 10) for n in range(2))
    engine.add(author)
    engine.add(waiter)
    engine.step()
    engine.step()
    engine.cancel(author)
    engine.complete([])
    while not waiter.finished:
        engine.step()
    assert (author.finish_reason, author.completion_tokens) == ("cancelled", 0)
    assert waiter.cached_tokens == 2 * CHUNK
    assert waiter.completion_ids == answer([*examples, 1], 10)


def test_the_latest_makes_room_and_loses_nothing():
    engine, _ = build_engine(4)
    prompts = [[7, n] + [3] * 60 for n in range(3)]
    requests = [build_request(engine, prompt, 150) for prompt in prompts]
    for request in requests:
        engine.add(request)
    sent_back: set[int] = set()
    while engine.has_work:
        engine.step()
        sent_back |= {r.arrival for r in engine._scheduler.waiting if r.completion_tokens}
    assert [request.completion_ids for request in requests] == [answer(prompt, 150) for prompt in prompts]
    assert sent_back
    assert 0 not in sent_back  # nobody makes the first one wait


def test_what_can_never_fit_is_refused():
    engine, _ = build_engine(4)
    request = build_request(engine, [1] * 200, 50)
    request.longest = 4 * PAGE + 1
    with pytest.raises(ChuanError, match="memory for 257 tokens, and there is room for 256"):
        engine.add(request)
    assert not engine.has_work
    with pytest.raises(ChuanError, match="do not fit a context of 256"):
        build_request(engine, [1] * 200, 57)


@pytest.mark.parametrize("seed", range(30))
def test_any_schedule_gives_each_what_it_gets_alone(seed: int):
    """Requests join, leave and are cancelled at random, with memory for about three of them."""
    rng = random.Random(seed)
    engine, _ = build_engine(rng.choice([9, 12, 30]), speculate=rng.random() < 0.7)
    beginnings = [draw(rng, rng.randrange(1, 250)) for _ in range(3)]
    planned: list[tuple[list[int], int, Request]] = []
    for _ in range(40):
        prompt = rng.choice(beginnings)[: rng.randrange(1, 300)] + draw(rng, rng.randrange(1, 90))
        new_tokens = rng.randrange(1, 120)
        if rng.random() < 0.2:
            planned.append((prompt, 0, engine.build_scoring(prompt, rng.randrange(1, len(prompt) + 1))))
        else:
            planned.append((prompt, new_tokens, build_request(engine, prompt, new_tokens)))
    left, scheduler = list(planned), engine._scheduler
    while left or engine.has_work:
        while left and rng.random() < 0.3:
            engine.add(left.pop()[2])
        if rng.random() < 0.03:
            engine.cancel(rng.choice(planned[len(left) :] or planned)[2])
        engine.step()
        for line in (scheduler.waiting, scheduler.running):
            assert [r.arrival for r in line] == sorted(r.arrival for r in line)
    assert scheduler._pool.available == scheduler.page_count
    assert not scheduler._computing
    reasons = set()
    for prompt, new_tokens, request in planned:
        reasons.add(request.finish_reason)
        expected = answer(prompt, new_tokens)
        if request.finish_reason == "cancelled":
            assert request.completion_ids == expected[: request.completion_tokens]
        elif isinstance(request, Generation):
            assert request.completion_ids == expected
        else:
            rows = [answer(prompt[: len(prompt) - back], 1)[0] for back in reversed(range(request.keep))]
            assert request.logits.argmax(dim=-1).tolist() == rows
    assert {"length", "stop"} <= reasons
