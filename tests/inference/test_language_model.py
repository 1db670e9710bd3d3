"""Answers over tiny models: greedy against transformers, stops, counts, keys used again."""

import copy
import itertools

import pytest
import torch

from chuan.chat.jinja import JinjaChat
from chuan.checkpoints.save import Extras
from chuan.errors import ChuanError, PromptTooLongError
from chuan.inference.build import build_runner
from chuan.inference.language_model import LanguageModel
from chuan.inference.runner import CHUNK
from chuan.inference.sampling import SamplingOptions
from chuan.tokenizer.json_tokenizer import JsonTokenizer
from tests.chat.test_jinja import CHATML, NAMES
from tests.support.tiny import build_tiny_config, build_tiny_llama
from tests.support.tiny_bpe import train_tiny_bpe

DESCRIPTION = train_tiny_bpe()
TOKENIZER = JsonTokenizer(DESCRIPTION, NAMES)
CONFIG = build_tiny_config(vocab_size=TOKENIZER.vocab_size, max_position_embeddings=1600)
THEIRS, DECODER = build_tiny_llama(CONFIG)
LONG = " ".join(map(str, range(2000)))
MESSAGES = [{"role": "user", "content": "Where does the river run?"}]


@pytest.fixture
def model() -> LanguageModel:
    return build_model()


def build_model() -> LanguageModel:
    chat_format = JinjaChat(TOKENIZER, CHATML, NAMES)
    defaults = SamplingOptions(max_new_tokens=40)
    return LanguageModel(
        "tiny", DECODER, build_runner(DECODER), TOKENIZER, chat_format, defaults, frozenset(), Extras()
    )


@pytest.mark.parametrize("prompt", ["The river", "你好，世界", "1 + 1 =", "x" * 700])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_is_transformers_generate(model: LanguageModel, prompt: str, penalty: float):
    ids = TOKENIZER.encode(prompt)
    out = THEIRS.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids)),
        max_new_tokens=40,
        do_sample=False,
        repetition_penalty=penalty,
        eos_token_id=None,
    )
    assert model.generate(prompt, repetition_penalty=penalty) == TOKENIZER.decode(out[0, len(ids) :].tolist())


def test_streaming_is_blocking_and_messages_stay(model: LanguageModel):
    messages = copy.deepcopy(MESSAGES)
    whole = model.chat(messages)
    pieces = list(model.chat(messages, stream=True))
    assert "".join(pieces) == whole
    assert len(pieces) > 5
    assert all(pieces)
    assert messages == MESSAGES
    sampled = {"temperature": 1.0, "seed": 3}
    assert model.chat(messages, **sampled) == "".join(model.chat(messages, stream=True, **sampled)) != whole


def test_the_last_increment_tells_why_and_how_many(model: LanguageModel):
    increments = list(model.stream_chat(MESSAGES, SamplingOptions(max_new_tokens=12)))
    assert [i.finish_reason for i in increments[:-1]] == [None] * (len(increments) - 1)
    last = increments[-1]
    prompt = model.chat_format.render([*_messages(MESSAGES)], 1600, 12)
    assert (last.finish_reason, last.completion_tokens, last.prompt_tokens) == ("length", 12, len(prompt))


def test_it_stops_on_stop_ids(model: LanguageModel):
    ids = TOKENIZER.encode(model.generate("The river", max_new_tokens=1), control=True)
    first_id = int(DECODER(torch.tensor([TOKENIZER.encode("The river")]))[0, -1].argmax())
    model.stop_ids = frozenset({first_id})
    last = list(model.stream_text("The river"))[-1]
    assert (last.text, last.finish_reason, last.completion_tokens) == ("", "stop", 1)
    assert ids is not None


def test_stop_strings_may_begin_and_end_inside_tokens(model: LanguageModel):
    whole = model.generate("The river")
    for start, end in itertools.product(range(3, 20, 4), (1, 3)):
        stop = whole[start : start + end]
        answer = model.generate("The river", stop=stop)
        assert answer == whole[: whole.index(stop)]
        assert (
            list(model.stream_text("The river", SamplingOptions(max_new_tokens=40, stop=(stop,))))[-1].finish_reason
            == "stop"
        )


def test_the_previous_turns_keys_are_used_again(model: LanguageModel):
    first = list(model.stream_chat(MESSAGES))
    answer = "".join(i.text for i in first)
    longer = [*MESSAGES, {"role": "assistant", "content": answer}, {"role": "user", "content": "And then?"}]
    again = list(model.stream_chat(longer))
    assert first[-1].cached_tokens == 0
    assert again[-1].cached_tokens >= first[-1].prompt_tokens
    fresh = list(build_model().stream_chat(longer))
    assert fresh[-1].cached_tokens == 0
    assert "".join(i.text for i in again) == "".join(i.text for i in fresh)
    other = [{"role": "user", "content": "Something else"}]
    assert model.chat(other) == build_model().chat(other)


def test_two_streams_at_once_do_not_meet(model: LanguageModel):
    alone = [model.generate(prompt) for prompt in ("The river", "你好")]
    pairs = itertools.zip_longest(
        model.generate("The river", stream=True), model.generate("你好", stream=True), fillvalue=""
    )
    assert ["".join(side) for side in zip(*pairs, strict=True)] == alone


def test_a_stream_that_is_left_early_harms_nothing(model: LanguageModel):
    whole = model.generate("The river")
    stream = model.generate("The river", stream=True)
    next(stream)
    stream.close()
    assert model.generate("The river") == whole


def test_work_per_token_does_not_grow(model: LanguageModel, monkeypatch: pytest.MonkeyPatch):
    """Prefill reads the prompt once, in pieces; every further call reads one token and its drafts, at most eight."""
    calls: list[int] = []
    forward = DECODER.forward

    def count(token_ids: torch.Tensor, *args, **kwargs):
        calls.append(token_ids.shape[1])
        return forward(token_ids, *args, **kwargs)

    monkeypatch.setattr(DECODER, "forward", count)
    prompt = "川" * 400
    size = len(TOKENIZER.encode(prompt))
    model.generate(prompt, max_new_tokens=200)
    chunks = -(-size // CHUNK)
    assert calls[:chunks] == [CHUNK] * (size // CHUNK) + [size % CHUNK]
    assert max(calls[chunks:]) <= 9
    assert len(calls[chunks:]) <= 199 <= sum(calls[chunks:])


def test_what_does_not_fit_is_said_at_once(model: LanguageModel):
    with pytest.raises(PromptTooLongError) as info:
        model.generate(LONG, stream=True)  # before anything is asked of the iterator
    assert info.value.excess == len(TOKENIZER.encode(LONG)) + 40 - 1600
    with pytest.raises(PromptTooLongError):
        model.chat([{"role": "user", "content": LONG}], stream=True)
    with pytest.raises(ChuanError, match="is empty"):
        model.generate("")
    with pytest.raises(ChuanError, match="no sampling option"):
        model.generate("a", temprature=1)


def test_logits(model: LanguageModel):
    ids = TOKENIZER.encode("The river runs")
    logits = model.logits(ids)
    assert (logits.shape, logits.dtype) == ((len(ids), CONFIG.vocab_size), torch.float32)
    assert torch.equal(model.logits(torch.tensor(ids)), logits)
    with torch.inference_mode():
        assert (logits - THEIRS(torch.tensor([ids])).logits[0]).abs().max() < 1e-4
    for bad in ([], [-1], [CONFIG.vocab_size], [1] * 1601):
        with pytest.raises(ChuanError):
            model.logits(bad)


def test_a_base_model_says_so(model: LanguageModel):
    model.chat_format = None
    with pytest.raises(ChuanError, match="tiny is a base model .* use generate"):
        model.chat(MESSAGES)
    assert model.generate("The river")


def _messages(messages):
    from chuan.chat.messages import check_messages

    return check_messages(messages)
