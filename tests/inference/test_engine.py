"""The engine over real tiny decoders: each request gets what the decoder alone gives, whatever happens around it."""

import random
import threading

import pytest
import torch
from torch import Tensor

from chuan.errors import ChuanError
from chuan.inference.engine import Engine
from chuan.inference.generation import Increment
from chuan.inference.runner import TorchRunner
from chuan.inference.sampling import SamplingOptions
from chuan.model.decoder import Decoder
from chuan.model.kv_cache import KVCache
from tests.support.tiny import build_tiny_config, build_tiny_decoder
from tests.support.toy_runner import LETTERS, ToyRunner, ToyTokenizer, answer

CONFIG = build_tiny_config(vocab_size=26, num_key_value_heads=2, max_position_embeddings=512)
DECODER = build_tiny_decoder(CONFIG)
DYNAMIC = build_tiny_decoder(
    build_tiny_config(vocab_size=26, max_position_embeddings=64, rope_scaling={"rope_type": "dynamic", "factor": 6.0})
)


@torch.inference_mode()
def decode_alone(decoder: Decoder, prompt: list[int], count: int) -> list[int]:
    """Greedy by the decoder's own cache, a prompt at once."""
    cache, ids = KVCache(decoder.config), []
    logits = decoder(torch.tensor([prompt]), cache)
    for _ in range(count):
        ids.append(int(logits[0, -1].argmax()))
        logits = decoder(torch.tensor([ids[-1:]]), cache)
    return ids


def build_request(engine: Engine, prompt: list[int], new_tokens: int = 30, **options):
    return engine.build_generation(prompt, SamplingOptions(max_new_tokens=new_tokens, **options), frozenset())


@pytest.mark.parametrize("decoder", [DECODER, DYNAMIC], ids=["plain", "dynamic angles"])
@pytest.mark.parametrize("page_count", [8, 60])
def test_requests_that_come_and_go_get_what_they_get_alone(decoder: Decoder, page_count: int):
    rng = random.Random(page_count)
    engine = Engine(TorchRunner(decoder, page_count), ToyTokenizer())
    common = [rng.randrange(26) for _ in range(100)]
    # One prompt at once and in chunks are the same but for dynamic angles: there, all stay within a chunk.
    prompts = [
        common[: rng.randrange(1, 90)] + [rng.randrange(26) for _ in range(rng.randrange(1, 60))] for _ in range(24)
    ]
    if decoder is DYNAMIC:
        prompts = [[rng.randrange(26) for _ in range(rng.randrange(1, 200))] for _ in range(12)]
    requests = [build_request(engine, prompt) for prompt in prompts]
    for request in requests:
        engine.add(request)
        for _ in range(rng.randrange(4)):
            engine.step()
    while engine.has_work:
        engine.step()
    assert [r.completion_ids for r in requests] == [decode_alone(decoder, prompt, 30) for prompt in prompts]
    if decoder is DECODER:
        assert sum(request.cached_tokens for request in requests) > 500


def test_logits_are_the_decoders():
    engine = Engine(TorchRunner(DECODER, 20), ToyTokenizer())
    ids = [random.Random(4).randrange(26) for _ in range(400)]
    with torch.inference_mode():
        expected = DECODER(torch.tensor([ids]))[0]
    for _ in range(2):  # the second time with everything in the cache
        for keep in (1, 70, 145, 400):
            request = engine.build_scoring(ids, keep)
            engine.complete([request])
            assert (request.logits - expected[-keep:]).abs().max() < 1e-4
            assert request.logits.shape == (keep, 26)
    assert request.finish_reason == "stop"
    with pytest.raises(ValueError, match="keep"):
        engine.build_scoring(ids, 401)
    with pytest.raises(ChuanError, match="513 tokens do not fit a context of 512"):
        engine.build_scoring([1] * 513, 1)
    with pytest.raises(ValueError, match="not finished"):
        _ = engine.build_scoring(ids, 1).logits


def test_a_second_question_behind_the_same_text_computes_little():
    engine = Engine(TorchRunner(DECODER, 20), ToyTokenizer())
    text = [random.Random(5).randrange(26) for _ in range(300)]
    letters = [engine.build_scoring([*text, n, 3], 1) for n in range(5)]
    engine.complete(letters)
    fresh = Engine(TorchRunner(DECODER, 20), ToyTokenizer())
    for n, request in enumerate(letters):
        alone = fresh.build_scoring([*text, n, 3], 2)
        fresh.complete([alone])
        assert (request.logits[-1] - alone.logits[-1]).abs().max() < 1e-4
        assert request.cached_tokens >= (256 if n else 0)
    late = engine.build_scoring([*text, 9, 3], 1)
    engine.complete([late])
    assert late.cached_tokens == 300


def test_an_iterator_left_early_cancels_at_the_next_step():
    engine = Engine(ToyRunner(20), ToyTokenizer())
    request = build_request(engine, [1, 2, 3], 200)
    stream = engine.stream(request)
    assert next(stream).text == LETTERS[answer([1, 2, 3], 1)[0]]
    stream.close()
    assert request.finish_reason is None
    assert engine.has_work
    assert engine.step() == [request]
    assert request.finish_reason == "cancelled"
    assert request.increments[-1] == Increment("", 3, 0, request.completion_tokens, "cancelled")
    assert not engine.has_work
    engine.cancel(request)  # nothing more to cancel
    assert not engine.has_work


def test_a_step_says_whose_turn_it_was():
    engine = Engine(ToyRunner(40), ToyTokenizer())
    short, long = build_request(engine, [1, 2], 3), build_request(engine, [5] * 600, 2)
    engine.add(short)
    engine.add(long)
    assert engine.step() == [short]  # the long prompt is not read yet
    while engine.has_work:
        assert engine.step()
    assert engine.step() == []


def test_one_request_in_trouble_is_not_the_others():
    class Damaged(ToyRunner):
        def run(self, pieces) -> Tensor:
            logits = super().run(pieces)
            if len(pieces) == 2:
                logits[0] = float("nan")
            return logits

    engine = Engine(Damaged(20), ToyTokenizer(), speculate=False)
    bad, good = build_request(engine, [1, 2, 3]), build_request(engine, [4, 5, 6])
    with pytest.raises(ChuanError, match="NaN"):
        engine.complete([bad, good])
    good = build_request(engine, [4, 5, 6])
    engine.add(bad := build_request(engine, [1, 2, 3]))
    assert list(engine.stream(good))[-1].finish_reason == "length"
    assert good.completion_ids == answer([4, 5, 6], 30)
    assert isinstance(bad.error, ChuanError)
    assert engine._scheduler._pool.available == 20


@pytest.mark.parametrize("where", ["run", "schedule", "advance", "copy_page"])
def test_an_interrupt_anywhere_leaves_an_engine_that_works(where: str, monkeypatch: pytest.MonkeyPatch):
    engine = Engine(ToyRunner(20), ToyTokenizer())
    prompt = [7] * 100
    engine.complete([build_request(engine, [*prompt, 1])])
    first, second = build_request(engine, [*prompt, 2], 60), build_request(engine, [*prompt, 3], 60)
    engine.add(second)
    owner = engine.runner if where in ("run", "copy_page") else engine._scheduler
    real, calls = getattr(owner, where), 0

    def interrupt(*arguments):
        nonlocal calls
        calls += 1
        if calls == (1 if where == "copy_page" else 3):
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(owner, where, interrupt)
    with pytest.raises(KeyboardInterrupt):
        engine.complete([first])
    while engine.has_work:
        engine.step()
    assert first.finish_reason == "cancelled"
    assert second.completion_ids == answer([*prompt, 3], 60)
    assert engine._scheduler._pool.available == 20


def test_threads_add_and_stream_at_once():
    engine = Engine(ToyRunner(40), ToyTokenizer())
    answers: dict[int, list[int]] = {}

    def ask(n: int) -> None:
        request = build_request(engine, [n, 1, 2], 80)
        for _ in engine.stream(request):
            pass
        answers[n] = request.completion_ids

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert answers == {n: answer([n, 1, 2], 80) for n in range(12)}


def test_increments_add_up():
    engine = Engine(ToyRunner(20), ToyTokenizer())
    increments = list(engine.stream(build_request(engine, [1, 2, 3], 50)))
    assert "".join(i.text for i in increments) == "".join(LETTERS[i] for i in answer([1, 2, 3], 50))
    assert [i.completion_tokens for i in increments] == list(range(1, 51))
    assert [i.finish_reason for i in increments] == [None] * 49 + ["length"]
