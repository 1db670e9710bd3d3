"""What a typed line does to the conversation."""

from __future__ import annotations

from pathlib import Path

import pytest

from chuan.errors import ChuanError
from chuan.terminal.commands import COMMANDS, interpret_line, render_help
from chuan.terminal.conversation import build_conversation

START = build_conversation("brief").add_user("hello").add_assistant("hi")


def test_a_message_is_added_and_answered() -> None:
    step = interpret_line(START, " two\nlines ")
    assert step.action == "answer"
    assert step.conversation.messages[-1] == {"role": "user", "content": " two\nlines "}


def test_two_slashes_are_one() -> None:
    step = interpret_line(START, "//exit is a path")
    assert step.action == "answer"
    assert step.conversation.messages[-1]["content"] == "/exit is a path"


def test_help_lists_every_command() -> None:
    step = interpret_line(START, "/help")
    assert step.action == "prompt"
    assert step.note == render_help()
    for command in COMMANDS:
        for name in command.names:
            assert name in step.note


@pytest.mark.parametrize("line", ["/exit", "/quit", "/exit "])
def test_exit(line: str) -> None:
    assert interpret_line(START, line).action == "exit"


def test_clear() -> None:
    assert interpret_line(START, "/clear").conversation == build_conversation("brief")


def test_system_shows_sets_and_removes() -> None:
    assert "brief" in interpret_line(START, "/system").note
    assert interpret_line(START, "/system").conversation == START
    changed = interpret_line(START, "/system be  kind\nalways").conversation
    assert changed.system == "be  kind\nalways"
    assert changed.turns == START.turns
    assert interpret_line(START, '/system ""').conversation.system is None


def test_retry_asks_again() -> None:
    step = interpret_line(START, "/retry")
    assert step.action == "answer"
    assert step.conversation.messages[-1] == {"role": "user", "content": "hello"}


def test_save_and_load_with_spaces_in_the_name(tmp_path: Path) -> None:
    name = tmp_path / "my chat.json"
    assert interpret_line(START, f"/save {name}").conversation == START
    step = interpret_line(build_conversation(None), f"/load {name}")
    assert step.action == "prompt"
    assert step.conversation == START


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/nonsense", "/help"),
        ("/", "/help"),
        ("/help me", "takes nothing"),
        ("/exit strategies?", "//"),
        ("/save", "/save FILE"),
        ("/load  ", "/load FILE"),
    ],
)
def test_a_wrong_command_says_what_to_do(line: str, words: str) -> None:
    with pytest.raises(ChuanError, match=words) as caught:
        interpret_line(START, line)
    assert "\n" not in str(caught.value)
