"""The Baichuan format against a plain re-statement of the published build_chat_input, left cut included."""

import random

import pytest

from chuan.chat.baichuan import BaichuanChat
from chuan.chat.messages import Message
from chuan.errors import ChuanError, PromptTooLongError
from chuan.tokenizer.spm import SentencePieceTokenizer
from tests.support.texts import generate_texts
from tests.support.tiny_tokenizer import WORDS, train_tiny_sentencepiece

USER, ASSISTANT = 195, 196


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    return SentencePieceTokenizer(train_tiny_sentencepiece(dummy_prefix=False), (USER, ASSISTANT))


def restate(tokenizer, messages: list[Message], length: int, max_new_tokens: int) -> tuple[list[int], list[int]]:
    """The published algorithm, step by step: the ids before its left cut, and after."""
    max_input = length - max_new_tokens
    system, rounds, current = [], [], []
    for index, message in enumerate(messages):
        if message.role == "system":
            assert index == 0
            system = tokenizer.encode(message.content)
            continue
        if message.role == "user" and current:
            rounds.append(current)
            current = []
        current.append(message)
    if current:
        rounds.append(current)
    max_history = max_input - len(system)
    history: list[int] = []
    for round_ in rounds[::-1]:
        tokens = []
        for message in round_:
            tokens.append(USER if message.role == "user" else ASSISTANT)
            tokens.extend(tokenizer.encode(message.content))
        if len(history) == 0 or len(history) + len(tokens) <= max_history:
            history = tokens + history
            if len(history) < max_history:
                continue
        break
    ids = system + history
    if messages[-1].role != "assistant":
        ids.append(ASSISTANT)
    return ids, ids[-max_input:]


def draw_conversation(rng: random.Random, texts: list[str]) -> list[Message]:
    messages = [Message("system", rng.choice(texts))] if rng.random() < 0.4 else []
    if rng.random() < 0.05:
        messages.append(Message("assistant", rng.choice(texts)))
    for _ in range(rng.randint(1, 6)):
        messages.append(Message("user", rng.choice(texts)))
        for _ in range(rng.choice([0, 1, 1, 1, 1, 2])):
            messages.append(Message("assistant", rng.choice(texts)))
    if rng.random() < 0.8 and messages[-1].role == "assistant":
        messages.append(Message("user", rng.choice(texts)))
    return messages


def test_ten_thousand_conversations(tokenizer):
    rng = random.Random(0)
    chat = BaichuanChat(tokenizer, USER, ASSISTANT)
    texts = [text for text in generate_texts(300, seed=1) if text.strip()]
    texts += [" ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 30))) for _ in range(300)]
    equal = dropped = refused = 0
    while equal < 10_000:
        messages = draw_conversation(rng, texts)
        length, max_new_tokens = rng.choice([(4096, 2048), (256, 64), (160, 40), (100, 20), (64, 60)])
        uncut, cut = restate(tokenizer, messages, length, max_new_tokens)
        if uncut == cut:
            assert chat.render(messages, length, max_new_tokens) == cut
            equal += 1
            dropped += len(uncut) < sum(len(tokenizer.encode(m.content)) for m in messages)
        else:
            with pytest.raises(PromptTooLongError) as info:
                chat.render(messages, length, max_new_tokens)
            assert info.value.excess == len(uncut) - (length - max_new_tokens)
            assert f"{info.value.excess} tokens too long" in str(info.value)
            refused += 1
    assert dropped > 500
    assert refused > 500


def test_a_chat_that_fills_the_budget_exactly_loses_nothing_silently(tokenizer):
    """The published code does not count the opening 196, and cuts the first token of the system text for it."""
    chat = BaichuanChat(tokenizer, USER, ASSISTANT)
    messages = [Message("system", "the river"), Message("user", "hello")]
    size = len(chat.render(messages, 4096, 2048))
    assert len(chat.render(messages, size + 10, 10)) == size
    with pytest.raises(PromptTooLongError, match="1 tokens too long"):
        chat.render(messages, size + 9, 10)


@pytest.mark.parametrize("max_new_tokens", [128, 129, 10**6])
def test_no_room_for_a_prompt_is_one_line(tokenizer, max_new_tokens):
    with pytest.raises(ChuanError, match="leaves no prompt"):
        BaichuanChat(tokenizer, USER, ASSISTANT).render([Message("user", "hi")], 128, max_new_tokens)


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_no_text_yields_a_role_id(tokenizer, role):
    chat = BaichuanChat(tokenizer, USER, ASSISTANT)
    for name in tokenizer.control_pieces:
        messages = [Message("system", "a"), Message("user", "b"), Message("assistant", "c"), Message("user", "d")]
        messages = [Message(m.role, f"{name}x{name}") if m.role == role else m for m in messages]
        ids = chat.render(messages, 4096, 2048)
        placed = [index for index in ids if index in set(tokenizer.control_pieces.values())]
        assert placed == [USER, ASSISTANT, USER, ASSISTANT]


def test_a_lesson_is_what_the_published_fine_tuning_learns(tokenizer):
    """Ids and labels as published, built message by message, with the eos appended; then transformers' shift by one."""
    rng = random.Random(3)
    texts = [text for text in generate_texts(200, seed=5) if text.strip()]
    eos = tokenizer.eos_id
    for _ in range(100):
        messages = []
        for _ in range(rng.randint(1, 4)):
            messages += [Message("user", rng.choice(texts)), Message("assistant", rng.choice(texts))]
        ids, labels = [], []
        for message in messages:
            content = tokenizer.encode(message.content)
            if message.role == "user":
                ids += [USER, *content]
                labels += [eos] + [-100] * len(content)
            else:
                ids += [ASSISTANT, *content]
                labels += [-100, *content]
        ids.append(eos)
        labels.append(eos)
        lesson = BaichuanChat(tokenizer, USER, ASSISTANT).build_lesson(messages)
        assert lesson.ids == ids[:-1]
        assert [-100 if target is None else target for target in lesson.targets] == labels[1:]


def test_a_lesson_begins_as_a_prompt_and_learns_nothing_before_the_first_answer(tokenizer):
    chat = BaichuanChat(tokenizer, USER, ASSISTANT)
    messages = [Message("system", "river"), Message("user", "what is your name"), Message("assistant", "hello")]
    lesson = chat.build_lesson(messages)
    prompt = chat.render(messages[:2], 100, 10)
    assert lesson.ids[: len(prompt)] == prompt
    assert lesson.targets == [None] * (len(prompt) - 1) + tokenizer.encode("hello") + [tokenizer.eos_id]
    assert chat.build_lesson([*messages, Message("user", "sea")]).targets[-1] is None
