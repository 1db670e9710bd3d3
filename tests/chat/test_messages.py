import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chuan.chat.messages import Message, check_messages
from chuan.errors import ChuanError

USER = {"role": "user", "content": "hi"}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
ROLE = st.sampled_from(["system", "user", "assistant", "tool", "", None, 3])


def test_good_messages_come_back_unchanged():
    given = [{"role": "system", "content": "be brief"}, USER, {"role": "assistant", "content": "yes"}, USER]
    before = copy.deepcopy(given)
    assert check_messages(given) == tuple(Message(m["role"], m["content"]) for m in given)
    assert given == before


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("hi", "must be a list"),
        ({"role": "user"}, "must be a list"),
        (None, "must be a list"),
        ([], "no user message"),
        ([{"role": "assistant", "content": "x"}], "no user message"),
        ([{"role": "tool", "content": "x"}], "roles are system, user and assistant"),
        ([{"content": "x"}], "roles are"),
        ([USER, {"role": "system", "content": "x"}], "only the first"),
        ([{"role": "user", "content": ""}], "no text"),
        ([{"role": "user", "content": " \n\t"}], "no text"),
        ([{"role": "user", "content": None}], "no text"),
        ([{"role": "user", "content": ["a"]}], "no text"),
        (["hi"], "must be a table"),
    ],
)
def test_bad_messages_are_one_line(messages, words):
    with pytest.raises(ChuanError, match=words) as info:
        check_messages(messages)
    assert "\n" not in str(info.value)


@settings(max_examples=300, deadline=None)
@given(JSON | st.lists(JSON | st.fixed_dictionaries({"role": ROLE, "content": JSON}), max_size=4))
def test_anything_gives_messages_or_one_line(messages):
    try:
        checked = check_messages(messages)
    except ChuanError as error:
        assert "\n" not in str(error)
    else:
        assert all(isinstance(message, Message) for message in checked)
