import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chuan.corpus.normalise import build_simplifier, normalise


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("e\u0301 \u00e9", "é é"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("a\u00a0b\u2003c", "a b c"),
        ("\u3000\u3000第一段。\u3000第二句。", "第一段。 第二句。"),
        ("a\u200bb\ufeff\x00\x07\u00adc", "abc"),
        ("def f():\n    return 1\n\tx", "def f():\n    return 1\n\tx"),
        ("trailing  \t\nspaces ", "trailing\nspaces"),
        ("a\n\n\n\n\n\nb", "a\n\n\nb"),
        ("👨\u200d👩\u200d👧", "👨\u200d👩\u200d👧"),
        ("\ufffd stays", "\ufffd stays"),
    ],
)
def test_one_way_of_writing(text, expected):
    assert normalise(text) == expected


@given(st.text())
def test_writing_it_again_changes_nothing(text):
    once = normalise(text)
    assert normalise(once) == once
    assert unicodedata.is_normalized("NFC", once)


def test_traditional_becomes_simplified():
    assert build_simplifier()("漢語的發展，頭髮") == "汉语的发展，头发"
