"""Messages from keys and from bytes."""

from __future__ import annotations

import io
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from chuan.errors import ChuanError
from chuan.terminal.input import CommandCompleter, PipeReader, TerminalReader, build_history, read_all_stdin


@pytest.fixture
def keys() -> Iterator[PipeInput]:
    with create_pipe_input() as source:
        yield source


@pytest.fixture
def reader(keys: PipeInput) -> TerminalReader:
    return TerminalReader(InMemoryHistory(), keys, DummyOutput())


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("你好\r", "你好"),
        ("one\ntwo\r", "one\ntwo"),  # Ctrl-J
        ("one\x1b\rtwo\r", "one\ntwo"),  # Alt-Enter
        ("\x1b[200~one\ntwo\n\nthree\x1b[201~\r", "one\ntwo\n\nthree"),  # pasted
        ("\r  \rafter empty lines\r", "after empty lines"),
        ("cleared\x03kept\r", "kept"),
        ("\x03typed between\x03\x03", None),
        ("\x03a\x7f\x03kept\r", "kept"),  # typed and deleted: the two Ctrl-C are not in a row
        ("\x03\x03", None),
        ("\x04", None),
    ],
)
def test_keys(keys: PipeInput, reader: TerminalReader, typed: str, message: str | None) -> None:
    keys.send_text(typed)
    assert reader.read() == message


def test_an_older_ctrl_c_is_forgotten(keys: PipeInput, reader: TerminalReader) -> None:
    keys.send_text("\x03one\r\x03two\r")
    assert reader.read() == "one"
    assert reader.read() == "two"


def complete(typed: str) -> list[str]:
    return [completion.text for completion in CommandCompleter().get_completions(Document(typed), CompleteEvent())]


def test_commands_are_completed_at_the_beginning_only() -> None:
    assert complete("/s") == ["/system", "/save"]
    assert complete("/q") == ["/quit"]
    assert complete("") == complete("say /s") == complete("//s") == complete("/save x") == []


def test_history_is_private_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "chuan"
    build_history(folder).append_string("你好\nzwei")
    path = folder / "history"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    assert list(build_history(folder).load_history_strings()) == ["你好\nzwei"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_history_without_a_folder_is_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert isinstance(build_history(tmp_path / "file" / "chuan"), InMemoryHistory)


def test_history_survives_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    history = build_history(tmp_path)
    (tmp_path / "history").unlink()
    (tmp_path / "history").mkdir()
    history.append_string("kept in memory")
    assert history.get_strings() == ["kept in memory"]


def read_all(data: bytes) -> list[str]:
    reader = PipeReader(io.BytesIO(data))
    return list(iter(reader.read, None))


def test_lines_of_a_pipe() -> None:
    assert read_all("一\n\n  \r\n two \r\nlast".encode()) == ["一", " two ", "last"]
    assert read_all(b"\xef\xbb\xbfwith a mark\n") == ["with a mark"]
    assert read_all(b"") == []


def test_invalid_bytes_name_their_line() -> None:
    reader = PipeReader(io.BytesIO(b"fine\n\n" + "中文".encode("gb18030") + b"\n"))
    assert reader.read() == "fine"
    with pytest.raises(ChuanError, match=r"line 3 .*UTF-8"):
        reader.read()


def test_all_of_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("一\n\n二\n".encode()), encoding="latin-1"))
    assert read_all_stdin() == "一\n\n二"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nb\n\xff\n")))
    with pytest.raises(ChuanError, match="line 3 "):
        read_all_stdin()
