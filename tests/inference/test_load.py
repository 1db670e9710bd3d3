"""Real weights: SmolLM2-135M, against transformers reading the same file."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import chuan
from chuan.errors import ChuanError

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


@pytest.fixture(scope="module")
def models(smollm2_path: Path):
    ours = chuan.load(smollm2_path, dtype="float32", device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(
        smollm2_path.parent, gguf_file=smollm2_path.name, dtype=torch.float32
    ).eval()
    return ours, theirs


@pytest.mark.xdist_group("smollm2")
@torch.inference_mode()
def test_greedy_is_transformers_greedy_for_20_prompts(models):
    """One pass of transformers over prompt and answer: every id of ours must be its argmax, so its greedy is ours.

    A step whose two best logits lie closer than the measured error may differ, and is listed.
    """
    ours, theirs = models
    error, ties = 0.0, []
    for prompt in PROMPTS:
        prompt_ids = ours.tokenizer.encode(prompt)
        answer = _greedy_ids(ours, prompt_ids)
        assert len(answer) == NEW_TOKENS
        ids = prompt_ids + answer
        expected = theirs(torch.tensor([ids])).logits[0].float()
        error = max(error, float((expected - ours.logits(ids)).abs().max()))
        for position, token_id in enumerate(answer, start=len(prompt_ids) - 1):
            best, second = expected[position].topk(2).values.tolist()
            if int(expected[position].argmax()) != token_id:
                ties.append((prompt, position, best - second))
    assert error < 1e-2
    print(f"largest difference of logits {error:.2e}; steps that differ: {ties}")
    assert all(gap <= 2 * error for _, _, gap in ties), ties


@pytest.mark.xdist_group("smollm2")
def test_greedy_is_generate_to_the_id(models):
    ours, theirs = models
    for prompt in (PROMPTS[0], PROMPTS[11]):
        ids = ours.tokenizer.encode(prompt)
        out = theirs.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=24, do_sample=False
        )
        assert _greedy_ids(ours, ids)[:24] == out[0, len(ids) :].tolist()


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


@pytest.mark.parametrize("bits", [4, 3, "8"])
def test_unknown_bits_are_one_line(bits):
    with pytest.raises(ChuanError, match="use bits=8 or bits=16"):
        chuan.load("smollm2-135m", bits=bits)


def test_unknown_names_are_one_line():
    with pytest.raises(ChuanError, match="smollm2-135m") as info:
        chuan.load("no-such-model")
    assert "\n" not in str(info.value)
    with pytest.raises(ChuanError, match="check the path"):
        chuan.load("./no-such-folder")


def _greedy_ids(model, prompt_ids: list[int]) -> list[int]:
    from chuan.inference.generation import Prefix, decode, prefill
    from chuan.model.kv_cache import KVCache

    with torch.inference_mode():
        prefix = Prefix(KVCache(model.decoder.config))
        logits, _ = prefill(model.decoder, prefix, prompt_ids)
        ids: list[int] = []
        for _ in range(NEW_TOKENS):
            ids.append(int(logits.argmax()))
            logits = decode(model.decoder, prefix, ids[-1])
    return ids
