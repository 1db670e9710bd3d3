"""Where messages come from: a person at a terminal, or the lines of a pipe.

In: the keyboard or stdin. Out: one message at a time, None when there are no more. Knows no model; of the commands it
knows the names, to complete them.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Protocol

from platformdirs import user_state_path
from prompt_toolkit import PromptSession
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output, create_output

from chuan.errors import ChuanError
from chuan.terminal.commands import COMMANDS

_CONVERT = "convert the input to UTF-8 (for example: iconv -f GB18030 -t UTF-8)"


class Reader(Protocol):
    """Gives messages; `interactive` where a person types them."""

    interactive: bool

    def read(self) -> str | None:
        """The next message; None at the end."""


class TerminalReader:
    """The prompt: Enter sends, Alt-Enter or Ctrl-J begins a new line, Ctrl-D leaves, Ctrl-C clears the line."""

    interactive = True

    def __init__(self, history: History, source: Input | None = None, output: Output | None = None) -> None:
        """`source` and `output` default to the terminal; answers may be piped away, so the prompt may be on stderr."""
        # Whether the last thing that happened to the line was Ctrl-C; typing anything forgets it.
        self._interrupted = False
        self._session: PromptSession[str] = PromptSession(
            "> ",
            multiline=True,
            prompt_continuation="  ",
            history=history,
            completer=CommandCompleter(),
            complete_while_typing=True,
            key_bindings=build_key_bindings(),
            reserve_space_for_menu=len(COMMANDS),
            input=source,
            output=output or create_output(stdout=sys.stdout if sys.stdout.isatty() else sys.stderr),
        )
        self._session.default_buffer.on_text_changed += self._forget_interrupt

    def read(self) -> str | None:
        self._interrupted = False
        while True:
            try:
                hint = "Ctrl-C again exits" if self._interrupted else ""
                text = self._session.prompt(placeholder=hint)
            except EOFError:
                return None
            except KeyboardInterrupt:
                if self._interrupted:
                    return None
                self._interrupted = True
                continue
            if text.strip():
                return text
            self._interrupted = False

    def _forget_interrupt(self, _: Buffer) -> None:
        self._interrupted = False


class PipeReader:
    """One message a line; empty lines are skipped. The bytes must be UTF-8."""

    interactive = False

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._line_number = 0

    def read(self) -> str | None:
        while data := self._stream.readline():
            self._line_number += 1
            line = _decode(data, self._line_number).rstrip("\r\n")
            if line.strip():
                return line
        return None


class CommandCompleter(Completer):
    """Completes the name of a command at the very beginning of a message."""

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        typed = document.text_before_cursor
        if not typed.startswith("/"):
            return
        for command in COMMANDS:
            for name in command.names:
                if name.startswith(typed):
                    yield Completion(name, start_position=-len(typed), display_meta=command.help)


class PrivateFileHistory(FileHistory):
    """A history that only its user can read, and that a full disk does not end the chat for."""

    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError):
            super().store_string(string)


def build_reader() -> Reader:
    """A prompt where stdin is a terminal, the lines of stdin where it is not."""
    if sys.stdin.isatty():
        return TerminalReader(build_history(user_state_path("chuan")))
    return PipeReader(sys.stdin.buffer)


def build_history(folder: Path) -> History:
    """The messages typed before, kept in `folder` with mode 0600; in memory only where that cannot be written."""
    path = folder / "history"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        os.close(handle)
        path.chmod(0o600)  # an older file may be open to all
    except OSError:
        return InMemoryHistory()
    return PrivateFileHistory(path)


def build_key_bindings() -> KeyBindings:
    """Enter sends although the prompt has several lines; Alt-Enter and Ctrl-J begin a new one."""
    bindings = KeyBindings()

    @bindings.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    @bindings.add("c-j")
    def _begin_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def read_all_stdin() -> str:
    """The whole of stdin as one message, without the newline at its end; it must be UTF-8."""
    return _decode(sys.stdin.buffer.read(), 1).rstrip("\r\n")


def _decode(data: bytes, first_line_number: int) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        number = first_line_number + data[: error.start].count(b"\n")
        raise ChuanError(f"line {number} of the input is not UTF-8; {_CONVERT}") from error
    # Some editors and shells put a byte order mark in front; it is no part of the text.
    return text.removeprefix("\ufeff") if first_line_number == 1 else text
