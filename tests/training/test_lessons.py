"""Conversations packed into rows: each whole, each once, in an order that depends on nothing but seed and number."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chuan.chat.baichuan import BaichuanChat
from chuan.chat.messages import Message
from chuan.errors import ChuanError
from chuan.tokenizer.spm import SentencePieceTokenizer
from chuan.training.lessons import Encoded, LessonRows, encode, is_held_out, pack
from chuan.training.rows import IGNORED
from chuan.training.show import render_lesson
from tests.support.tiny_tokenizer import train_tiny_sentencepiece

TOKENIZER = SentencePieceTokenizer(train_tiny_sentencepiece(), (195, 196))
CHAT = BaichuanChat(TOKENIZER, 195, 196)


def draw_lessons(count: int, longest: int) -> list[Encoded]:
    rng = np.random.default_rng(0)
    drawn = [rng.integers(1, 900, (2, size)).astype(np.int32) for size in rng.integers(1, longest + 1, count)]
    return [Encoded(tokens, targets, 0) for tokens, targets in drawn]


@given(st.lists(st.integers(1, 40), max_size=200))
def test_every_item_is_packed_once_and_no_bin_overflows(sizes):
    bins = pack(sizes, 40)
    assert sorted(item for members in bins for item in members) == list(range(len(sizes)))
    loads = sorted(sum(sizes[item] for item in members) for members in bins)
    assert all(load <= 40 for load in loads)
    assert len(loads) < 2 or loads[0] + loads[1] > 40  # no two bins that would have fitted into one


def test_an_item_larger_than_a_bin_is_refused():
    with pytest.raises(ValueError, match="item 1"):
        pack([3, 5], 4)


def test_rows_hold_every_lesson_whole_in_each_pass():
    lessons = draw_lessons(300, 64)
    rows = LessonRows(lessons, 64, seed=1)
    expected = sorted((lesson.tokens.tolist(), lesson.targets.tolist()) for lesson in lessons)
    orders = []
    for epoch in range(2):
        found = []
        for number in range(epoch * len(rows), (epoch + 1) * len(rows)):
            row = rows.row(number)
            for document in set(row.documents.tolist()) - {0}:
                inside = row.documents == document
                assert np.all(np.diff(np.flatnonzero(inside)) == 1)
                found.append((row.tokens[inside].tolist(), row.targets[inside].tolist()))
            assert np.all(row.targets[row.documents == 0] == IGNORED)
        assert sorted(found) == expected
        orders.append(found)
    assert orders[0] != orders[1]
    again = LessonRows(lessons, 64, seed=1)
    assert np.array_equal(again.row(9).tokens, rows.row(9).tokens)
    assert rows.filled == pytest.approx(sum(len(lesson.tokens) for lesson in lessons) / (64 * len(rows)))


def test_no_conversation_is_one_clear_line():
    with pytest.raises(ChuanError, match="no conversation to learn from"):
        LessonRows([], 64, seed=1)


def test_what_is_held_out_hangs_on_the_conversation_alone():
    lessons = draw_lessons(4000, 20)
    held = [is_held_out(lesson, 0.1) for lesson in lessons]
    assert 300 < sum(held) < 500
    assert [is_held_out(lesson, 0.1) for lesson in reversed(lessons)] == held[::-1]
    assert not any(is_held_out(lesson, 0.0) for lesson in lessons)


def test_a_long_conversation_is_cut_and_says_by_how_much():
    messages = (Message("user", "what is your name"), Message("assistant", "river " * 20))
    whole = encode(CHAT, messages, 1000)
    cut = encode(CHAT, messages, 12)
    assert (whole.cut, cut.cut) == (0, len(whole.tokens) - 12)
    assert np.array_equal(cut.tokens, whole.tokens[:12])
    assert np.array_equal(cut.targets, whole.targets[:12])


def test_what_is_shown_marks_what_is_learned():
    messages = tuple(Message(role, text) for role, text in [
        ("user", "what"), ("assistant", "name"), ("user", "hello"), ("assistant", "world 川")
    ])  # fmt: skip
    shown = render_lesson(encode(CHAT, messages, 100), TOKENIZER, brackets=True)
    user, assistant = (next(p for p, i in TOKENIZER.control_pieces.items() if i == index) for index in (195, 196))
    end = next(piece for piece, index in TOKENIZER.control_pieces.items() if index == TOKENIZER.eos_id)
    assert shown.plain == f"{user}what{assistant}⟦name{end}⟧{user}hello{assistant}⟦world 川{end}⟧"
    coloured = render_lesson(encode(CHAT, messages, 100), TOKENIZER, brackets=False)
    learned = "".join(coloured.plain[span.start : span.end] for span in coloured.spans if "green" in str(span.style))
    assert learned == f"name{end}world 川{end}"
