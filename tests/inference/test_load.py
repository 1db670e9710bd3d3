"""Real weights: SmolLM2-135M, against transformers reading the same file."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import chuan
from chuan.chat.messages import check_messages
from chuan.errors import ChuanError
from chuan.inference.sampling import SamplingOptions
from chuan.model.decoder import Decoder
from chuan.model.kv_cache import KVCache
from tests.support.folders import write_baichuan_folder
from tests.support.texts import generate_texts
from tests.support.tiny_tokenizer import train_tiny_sentencepiece

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the river,",
    "def fibonacci(n):\n",
    "Water boils at",
    "The three laws of motion are",
    "Dear Sir or Madam,\n",
    "1, 1, 2, 3, 5, 8,",
    "Photosynthesis is the process by which",
    "Q: Why is the sky blue?\nA:",
    "To be, or not to be,",
    "中国的首都是",
    "床前明月光，",
    "你好，请介绍一下你自己。",
    "今天天气很好，我们去",
    "温故而知新，",
    "一加一等于",
    "长江是中国最长的",
    "学而时习之，",
    "请用一句话解释什么是人工智能：",
    "Translate to Chinese: hello ->",
]
NEW_TOKENS = 64


@pytest.fixture(scope="session")  # a module's would be built again whenever a worker changes between modules
def models(smollm2_path: Path):
    ours = chuan.load(smollm2_path, dtype="float32", device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(
        smollm2_path.parent, gguf_file=smollm2_path.name, dtype=torch.float32
    ).eval()
    return ours, theirs


@pytest.mark.xdist_group("smollm2")
def test_greedy_is_transformers_greedy_for_20_prompts(models):
    """All prompts in one left-padded batch, which is each alone within rounding (the slow test has each alone)."""
    ours, theirs = models
    rows = [ours.tokenizer.encode(prompt) for prompt in PROMPTS]
    assert_transformers_would_say_the_same(ours, theirs, rows, decode_batch(ours.decoder, rows))


@pytest.mark.slow
def test_greedy_is_transformers_greedy_one_by_one(models):
    ours, theirs = models
    rows = [ours.tokenizer.encode(prompt) for prompt in PROMPTS]
    assert_transformers_would_say_the_same(ours, theirs, rows, [decode_one(ours, row) for row in rows])


@torch.inference_mode()
def assert_transformers_would_say_the_same(ours, theirs, rows: list[list[int]], answers: list[list[int]]) -> None:
    """One pass of transformers over prompt and answer: every id must be its argmax, so its greedy answer is the same.

    A step whose two best logits lie closer than the measured error may differ, and is listed.
    """
    error, ties = 0.0, []
    for prompt, row, answer in zip(PROMPTS, rows, answers, strict=True):
        assert len(answer) == NEW_TOKENS
        expected = theirs(torch.tensor([row + answer])).logits[0].float()
        error = max(error, float((expected - ours.logits(row + answer)).abs().max()))
        for position, token_id in enumerate(answer, start=len(row) - 1):
            best, second = expected[position].topk(2).values.tolist()
            if int(expected[position].argmax()) != token_id:
                ties.append((prompt, position, best - second))
    print(f"largest difference of logits {error:.2e}; steps that differ: {ties}")
    assert error < 1e-3
    assert all(gap <= 2 * max(error, 1e-5) for _, _, gap in ties), ties


@pytest.mark.xdist_group("smollm2")
def test_greedy_is_generate_to_the_id(models):
    ours, theirs = models
    for prompt in (PROMPTS[0], PROMPTS[11]):
        ids = ours.tokenizer.encode(prompt)
        out = theirs.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=24, do_sample=False
        )
        assert decode_one(ours, ids, 24) == out[0, len(ids) :].tolist()


@pytest.mark.xdist_group("smollm2")
def test_chat_knows_the_capital_of_france_and_reuses_keys(models):
    ours, _ = models
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    answer = ours.chat(messages)
    assert "Paris" in answer
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And of Italy?"}]
    last = list(ours.stream_chat(messages))[-1]
    assert last.cached_tokens >= 30


@pytest.mark.xdist_group("smollm2")
def test_eight_bits_answer_too(smollm2_path: Path):
    model = chuan.load(smollm2_path, bits=8, dtype="float32", device="cpu")
    assert "Paris" in model.chat([{"role": "user", "content": "What is the capital of France?"}])


@pytest.mark.parametrize("bits", [5, 3, "8"])
def test_unknown_bits_are_one_line(bits):
    with pytest.raises(ChuanError, match="use 16, 8 or 4"):
        chuan.load("smollm2-135m", bits=bits)


def test_unknown_names_are_one_line():
    with pytest.raises(ChuanError, match="smollm2-135m") as info:
        chuan.load("no-such-model")
    assert "\n" not in str(info.value)
    with pytest.raises(ChuanError, match="check the path"):
        chuan.load("./no-such-folder")


def decode_one(model: chuan.LanguageModel, prompt_ids: list[int], count: int = NEW_TOKENS) -> list[int]:
    """Greedy, the way an answer is generated."""
    request = model.engine.build_generation(prompt_ids, SamplingOptions(max_new_tokens=count), frozenset())
    model.engine.complete([request])
    return request.completion_ids


@torch.inference_mode()
def decode_batch(decoder: Decoder, rows: list[list[int]]) -> list[list[int]]:
    """Greedy, for all rows at once, padded on the left."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    cache, answers = KVCache(decoder.config, batch_size=len(rows)), []
    for _ in range(NEW_TOKENS):
        ids = decoder(ids, cache, attention_mask=mask, logits_to_keep=1)[:, -1].argmax(dim=-1, keepdim=True)
        mask = torch.cat([mask, torch.ones(len(rows), 1, dtype=torch.bool)], dim=1)
        answers.append(ids)
    return torch.cat(answers, dim=1).tolist()


def test_a_saved_baichuan_carries_its_format_for_other_programs(tmp_path: Path):
    model_file = train_tiny_sentencepiece(dummy_prefix=False)
    write_baichuan_folder(tmp_path / "original", generation=2, model_file=model_file)
    model = chuan.load(tmp_path / "original", dtype="float32", device="cpu")
    model.save(tmp_path / "llama")
    again = chuan.load(tmp_path / "llama", dtype="float32", device="cpu")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "llama")
    texts = [text for text in generate_texts(200, seed=6) if text.strip()]
    for first, second, third in zip(texts[::3], texts[1::3], texts[2::3], strict=False):
        messages = [
            {"role": "system", "content": first},
            {"role": "user", "content": second},
            {"role": "assistant", "content": third},
            {"role": "user", "content": first},
        ]
        expected = model.chat_format.render(check_messages(messages), 4096, 16)
        assert again.chat_format.render(check_messages(messages), 4096, 16) == expected
        found = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert found == expected, messages
    assert torch.equal(again.logits(expected), model.logits(expected))
    assert again.defaults == model.defaults
    assert again.stop_ids == model.stop_ids
