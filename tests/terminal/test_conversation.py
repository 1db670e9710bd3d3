"""Conversations: turns, rounds and their file."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from chuan.errors import ChuanError
from chuan.terminal.conversation import Conversation, build_conversation, load_conversation, save_conversation


def build_two_rounds() -> Conversation:
    conversation = build_conversation("简短回答")
    return conversation.add_user("一").add_assistant("1").add_user("二").add_assistant("2")


def test_messages_begin_with_the_system_prompt() -> None:
    assert build_two_rounds().messages[:2] == [
        {"role": "system", "content": "简短回答"},
        {"role": "user", "content": "一"},
    ]
    assert build_conversation(None).add_user("a").messages == [{"role": "user", "content": "a"}]


def test_messages_are_copies() -> None:
    conversation = build_two_rounds()
    conversation.messages[1]["content"] = "changed"
    assert conversation.messages[1]["content"] == "一"


def test_undo_answer_leaves_the_last_question() -> None:
    assert build_two_rounds().undo_answer().messages[-1] == {"role": "user", "content": "二"}
    with pytest.raises(ChuanError, match="no message to answer"):
        build_conversation("s").undo_answer()


def test_drop_oldest_round_keeps_the_system_prompt_and_the_rest() -> None:
    left = build_two_rounds().drop_oldest_round()
    assert [message["content"] for message in left.messages] == ["简短回答", "二", "2"]
    assert left.rounds == 1
    with pytest.raises(ChuanError, match="no older round"):
        left.drop_oldest_round()


def test_clear_keeps_the_system_prompt() -> None:
    assert build_two_rounds().clear().messages == [{"role": "system", "content": "简短回答"}]


@pytest.mark.parametrize(("text", "word"), [("  \n", "empty"), ("a\udcff", "UTF-8")])
def test_a_bad_message_is_refused(text: str, word: str) -> None:
    with pytest.raises(ChuanError, match=word):
        build_conversation(None).add_user(text)


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "对话.json"
    save_conversation(build_two_rounds(), path)
    assert load_conversation(path) == build_two_rounds()
    assert "简短回答" in path.read_text(encoding="utf-8")
    assert json.loads(path.read_bytes()) == {"messages": build_two_rounds().messages}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_saving_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path, link = tmp_path / "a.json", tmp_path / "link.json"
    path.write_text("old")
    link.symlink_to(path)
    save_conversation(build_two_rounds(), link)
    assert load_conversation(path) == build_two_rounds()
    assert link.is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["a.json", "link.json"]


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ChuanError, match="No space left"):
        save_conversation(build_two_rounds(), path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("name", ["missing/a.json", ".", "nul\0byte", "~no-such-user-here/a.json"])
def test_where_nothing_can_be_saved(tmp_path: Path, name: str) -> None:
    with pytest.raises(ChuanError):
        save_conversation(build_two_rounds(), Path(name) if name.startswith("~") else tmp_path / name)


def test_a_device_is_not_replaced() -> None:
    with pytest.raises(ChuanError, match="regular file"):
        save_conversation(build_two_rounds(), Path(os.devnull))
    with pytest.raises(ChuanError, match="regular file"):
        load_conversation(Path(os.devnull))


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "not a saved conversation"),
        (b"\xd6\xd0", "UTF-8"),
        (b"[" * 100_000, "cannot load|not a saved"),
        (b"[]", "messages"),
        (b'{"messages": {}}', "messages"),
        (b'{"messages": [], "more": 1}', "messages"),
        (b'{"messages": ["a"]}', "message 1"),
        (b'{"messages": [{"role": "user"}]}', "message 1"),
        (b'{"messages": [{"role": "user", "content": null}]}', "must be text"),
        (b'{"messages": [{"role": "tool", "content": ""}]}', "tool"),
        (b'{"messages": [{"role": [], "content": ""}]}', "role"),
        (b'{"messages": [{"role": "user", "content": "a", "name": "b"}]}', "nothing else"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "Unicode"),
        (b'{"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "s"}]}', "message 2"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_bytes(content)
    with pytest.raises(ChuanError, match=word) as caught:
        load_conversation(path)
    assert "wrong.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ChuanError, match="No such file"):
        load_conversation(tmp_path / "missing.json")
