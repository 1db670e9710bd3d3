"""The chat loop: with a scripted model, in a pipe, and in a real pseudo-terminal."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

from chuan.errors import ChuanError, PromptTooLongError
from chuan.terminal.chat import converse, run_once
from chuan.terminal.conversation import Conversation, build_conversation
from chuan.terminal.render import PlainRenderer

from .scripted import ScriptedModel, respond

SCRIPT = """
import signal
import sys
from scripted import ScriptedModel, respond
from chuan.terminal.chat import run_chat, run_once

# As a shell starts a program; tests that run in the background of a script inherit Ctrl-C switched off.
signal.signal(signal.SIGINT, signal.default_int_handler)
model = ScriptedModel(respond)
if sys.argv[1:]:
    sys.exit(run_once(model, sys.argv[1], None, "a system prompt"))
sys.exit(run_chat(model, None, None))
"""

READY = r"\x1b\[\?2004h"  # the prompt waits for keys: it has asked for bracketed paste


class ListReader:
    """Gives the lines of a list; an exception in it is raised."""

    def __init__(self, lines: list[str], interactive: bool) -> None:
        self.interactive = interactive
        self._lines = iter(lines)

    def read(self) -> str | None:
        return next(self._lines, None)


class Talk:
    """A conversation with a scripted model that has ended."""

    def __init__(
        self, answer: Callable[[list[dict[str, str]]], Iterator[str]], lines: list[str], interactive: bool = True
    ) -> None:
        self.model = ScriptedModel(answer)
        out, notes = io.StringIO(), io.StringIO()
        reader, renderer = ListReader(lines, interactive), PlainRenderer(out, notes)
        self.succeeded = converse(self.model, None, build_conversation(None), reader, renderer)
        self.out, self.notes = out.getvalue(), notes.getvalue()

    def asked(self) -> list[list[str]]:
        return [[message["content"] for message in messages] for messages in self.model.asked]


def test_turns_are_remembered() -> None:
    talk = Talk(respond, ["one", "/retry", "two", "/exit", "never"])
    assert talk.asked() == [["one"], ["one"], ["one", "messages 1, lines 1, heard one! ", "two"]]
    assert talk.out.splitlines()[-1] == "messages 3, lines 1, heard two! "
    assert talk.succeeded
    assert talk.model.closed == 3


def interrupted(messages: list[dict[str, str]]) -> Iterator[str]:
    if messages[-1]["content"] == "silent":
        raise KeyboardInterrupt
    yield "part"
    if messages[-1]["content"] == "stop":
        raise KeyboardInterrupt


def test_ctrl_c_keeps_the_part_and_forgets_a_silent_turn() -> None:
    talk = Talk(interrupted, ["stop", "silent", "last"])
    assert talk.asked()[1:] == [["stop", "part", "silent"], ["stop", "part", "last"]]
    assert talk.succeeded


def test_ctrl_c_in_a_pipe_ends_the_program() -> None:
    with pytest.raises(KeyboardInterrupt):
        Talk(interrupted, ["stop", "last"], interactive=False)


def failing(messages: list[dict[str, str]]) -> Iterator[str]:
    yield "part"
    if messages[-1]["content"] == "fail":
        raise ChuanError("out of memory; choose fewer bits")


def test_an_error_is_one_line_and_the_turn_is_forgotten() -> None:
    talk = Talk(failing, ["one", "fail", "two"])
    assert talk.asked()[-1] == ["one", "part", "two"]
    assert talk.notes == "out of memory; choose fewer bits\n"
    assert talk.out == "part\npart\npart\n"
    assert not talk.succeeded


def test_a_failed_retry_keeps_the_old_answer() -> None:
    calls: list[int] = []

    def fail_second(messages: list[dict[str, str]]) -> Iterator[str]:
        calls.append(1)
        if len(calls) == 2:
            raise ChuanError("no")
        yield "answer"

    assert Talk(fail_second, ["one", "/retry", "two"]).asked()[-1] == ["one", "answer", "two"]


def narrow(messages: list[dict[str, str]]) -> Iterator[str]:
    size = sum(len(message["content"]) for message in messages)
    if size > 10:
        raise PromptTooLongError("the conversation does not fit; say less", size - 10)
    yield "ok"


def test_the_oldest_rounds_give_way() -> None:
    talk = Talk(narrow, ["aaaa", "bbbb", "cccc"])
    assert talk.asked() == [
        ["aaaa"],
        ["aaaa", "ok", "bbbb"],
        ["aaaa", "ok", "bbbb", "ok", "cccc"],
        ["bbbb", "ok", "cccc"],
    ]
    assert talk.notes.count("oldest round was dropped") == 1
    assert len(talk.notes.splitlines()) == 1


def test_a_message_that_never_fits_is_an_error_and_costs_nothing() -> None:
    talk = Talk(narrow, ["aaaa", "b" * 11, "cc"])
    assert "does not fit; say less" in talk.notes
    assert talk.asked()[-1] == ["aaaa", "ok", "cc"]


def test_the_system_prompt_survives_dropping() -> None:
    model = ScriptedModel(narrow)
    start = Conversation("s").add_user("aaaa").add_assistant("ok")
    converse(model, None, start, ListReader(["bbbb"], True), PlainRenderer(io.StringIO(), io.StringIO()))
    assert model.asked[-1][0] == {"role": "system", "content": "s"}
    assert len(model.asked[-1]) == 2


def test_one_answer(capsys: pytest.CaptureFixture[str]) -> None:
    model = ScriptedModel(respond)
    assert run_once(model, "hello", None, "brief") == 0
    assert capsys.readouterr() == ("messages 2, lines 1, heard hello! \n", "")
    assert model.asked[0][0] == {"role": "system", "content": "brief"}
    assert run_once(ScriptedModel(narrow), "x" * 11) == 1
    assert run_once(model, " ") == 1
    assert capsys.readouterr() == (
        "",
        "the conversation does not fit; say less\nthe message is empty; type some text\n",
    )
    assert run_once(ScriptedModel(interrupted), "stop") == 130


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    source = Path(__file__).parents[2] / "src"
    return kept | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(source)]),
        "HOME": str(tmp_path),  # where the history goes depends on the system; it must not be the user's own
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "TERM": "xterm-256color",
        "PROMPT_TOOLKIT_NO_CPR": "1",
    }


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return str(path)


def run_piped(script: str, environment: dict[str, str], data: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, script], input=data, env=environment, capture_output=True, timeout=60)


def test_piped_output_is_only_answers(script: str, environment: dict[str, str]) -> None:
    lines = "你好\n\n/help\nattack\nmarkdown\n"
    result = run_piped(script, environment | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}, lines.encode())
    answers = result.stdout.decode("utf-8")
    assert result.returncode == 0
    assert answers.startswith(
        "messages 1, lines 1, heard 你好! \ncalm [31m]0;title [red]text[/red] 2J end\n# Heading\n"
    )
    assert answers.endswith("- a\n- b\n")
    assert b"\x1b" not in result.stdout + result.stderr
    assert b"/retry" in result.stderr


def test_piped_errors_are_counted_at_the_end(script: str, environment: dict[str, str]) -> None:
    result = run_piped(script, environment, b"/nonsense\nhello\n")
    assert result.returncode == 1
    assert result.stdout == b"messages 1, lines 1, heard hello! \n"
    result = run_piped(script, environment, b"hello\n\xd6\xd0\nnever\n")
    assert result.returncode == 1
    assert result.stdout == b"messages 1, lines 1, heard hello! \n"
    assert b"line 2 of the input is not UTF-8" in result.stderr
    assert b"Traceback" not in result.stderr


def test_ctrl_c_and_a_reader_that_leaves(script: str, environment: dict[str, str]) -> None:
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, script, "wait"], env=environment, **pipe) as process:
        assert process.stdout.read(11) == b"first piece"  # flushed as it came
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == (b"\n", b"")
        assert process.returncode == 130
    with subprocess.Popen([sys.executable, script], env=environment, **pipe) as process:
        process.stdout.close()
        process.stdout = None
        _, errors = process.communicate(b"hello\n", timeout=30)
        assert (process.returncode, errors) == (141, b"")


def test_the_terminal_imports_no_torch(environment: dict[str, str]) -> None:
    code = "import sys, chuan.terminal.chat; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=60).returncode == 0


def spawn(script: str, environment: dict[str, str], *arguments: str, columns: int = 100) -> pexpect.spawn:
    return pexpect.spawn(
        sys.executable,
        [script, *arguments],
        env=environment,  # type: ignore[arg-type]
        dimensions=(24, columns),
        encoding="utf-8",
        timeout=20,
    )


def leave(child: pexpect.spawn) -> int | None:
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus


def test_a_terminal_streams_and_ctrl_c_stops_only_the_answer(script: str, environment: dict[str, str]) -> None:
    child = spawn(script, environment)
    child.expect("scripted .*help")
    child.expect(READY)
    child.send("wait\r")
    child.expect("first piece")  # while the model still works
    child.sendintr()
    child.expect("stopped · 1 token")
    child.expect(READY)
    child.send("wait silently\r")
    child.expect(r"\x1b\[\?2004l")  # the prompt is over
    child.expect(r"\x1b\[\?25l")  # and the answer has hidden the cursor
    child.sendintr()
    child.expect(READY)
    child.send("hello\r")
    child.expect("messages 3, lines 1, heard hello!")
    child.expect(r"6 tokens · .* tok/s · prompt 3")
    child.expect(READY)
    assert leave(child) == 0


def test_a_terminal_takes_lines_pastes_and_commands(script: str, environment: dict[str, str], tmp_path: Path) -> None:
    child = spawn(script, environment)
    path = tmp_path / "chat.json"
    for typed, expected in [
        ("one\x1b\rtwo\r", "messages 1, lines 2, heard two!"),
        ("\x1b[200~a\nb\n\nc\x1b[201~\r", "messages 3, lines 4, heard c!"),
        ("/retry\r", "messages 3, lines 4, heard c!"),
        (f"/save {path}\r", "Saved 4 messages"),
        ("/clear\r", "A new conversation"),
        ("again\r", "messages 1, lines 1, heard again!"),
        ("/load missing.json\r", "cannot load missing.json"),
        (f"/load {path}\r", "Loaded 4 messages"),
        ("more\r", "messages 5, lines 1, heard more!"),
        ("//no command\r", "messages 7, lines 1, heard /no command!"),
        ("/nonsense\r", "/help lists them"),
        ("\x03", "Ctrl-C again exits"),
    ]:
        child.expect(READY)
        child.send(typed)
        child.expect(expected)
    assert leave(child) == 0
    saved = json.loads(path.read_bytes())["messages"]
    assert [message["role"] for message in saved] == ["user", "assistant"] * 2
    assert saved[2]["content"] == "a\nb\n\nc"
    assert "+a\n+b\n+\n+c\n" in next(tmp_path.rglob("history")).read_text(encoding="utf-8")


@pytest.mark.parametrize("columns", [20, 240])
def test_narrow_and_wide_terminals(script: str, environment: dict[str, str], columns: int) -> None:
    child = spawn(script, environment, columns=columns)
    for message in ("markdown", "attack", "/help", "中文" * 15):
        child.expect(READY)
        child.send(message + "\r")
    child.expect("heard")
    child.expect(READY)
    assert leave(child) == 0


def test_colours_and_no_colour(script: str, environment: dict[str, str]) -> None:
    for extra, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        child = spawn(script, environment | extra, "markdown")
        shown = child.read()
        child.close()
        assert child.exitstatus == 0
        assert "Heading" in shown
        assert "5 tokens" in shown
        assert ("\x1b[38;" in shown or "\x1b[3" in shown) == coloured
