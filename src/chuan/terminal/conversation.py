"""A conversation: its system prompt, its turns, and the JSON file that it is saved in.

In: texts and file names. Out: the messages that a model takes. A `Conversation` never changes; each operation returns
the next one, so that whatever fails on the way (an answer, a file) leaves the current one as it was. Knows no model
and no terminal.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chuan.errors import ChuanError, first_line

Message = dict[str, str]


@dataclass(frozen=True)
class Conversation:
    """The turns so far, the system prompt apart; build one with `build_conversation` or `load_conversation`."""

    system: str | None = None
    turns: tuple[Message, ...] = ()

    @property
    def messages(self) -> list[Message]:
        """What a model takes: the system prompt, where there is one, and the turns; copies, free to be changed."""
        head = [] if self.system is None else [{"role": "system", "content": self.system}]
        return head + [dict(turn) for turn in self.turns]

    @property
    def rounds(self) -> int:
        """How often the user spoke."""
        return len(self._user_indices())

    def add_user(self, text: str) -> Conversation:
        """The conversation with one more question."""
        if not text.strip():
            raise ChuanError("the message is empty; type some text")
        _check_encodable(text, "the message")
        return replace(self, turns=(*self.turns, {"role": "user", "content": text}))

    def add_assistant(self, text: str) -> Conversation:
        """The conversation with one more answer."""
        return replace(self, turns=(*self.turns, {"role": "assistant", "content": text}))

    def set_system(self, text: str) -> Conversation:
        """The conversation under another system prompt; an empty text takes it away."""
        _check_encodable(text, "the system prompt")
        return replace(self, system=text if text.strip() else None)

    def clear(self) -> Conversation:
        """Nothing but the system prompt."""
        return replace(self, turns=())

    def undo_answer(self) -> Conversation:
        """The conversation up to the last question, to be answered once more."""
        users = self._user_indices()
        if not users:
            raise ChuanError("there is no message to answer again; type one first")
        return replace(self, turns=self.turns[: users[-1] + 1])

    def drop_oldest_round(self) -> Conversation:
        """The conversation without its first question and what was said up to the second one."""
        users = self._user_indices()
        if len(users) < 2:
            raise ChuanError("the conversation has no older round to drop; use /clear")
        return replace(self, turns=self.turns[users[1] :])

    def _user_indices(self) -> list[int]:
        return [index for index, turn in enumerate(self.turns) if turn["role"] == "user"]


def build_conversation(system: str | None) -> Conversation:
    """A conversation that has not begun; `system` may be None or empty."""
    return Conversation().set_system(system or "")


def save_conversation(conversation: Conversation, path: Path) -> None:
    """Writes `{"messages": [...]}` to `path`: all of it or nothing, also when the machine stops halfway.

    The file is private to the user (mode 0600): people say private things to a model.
    """
    temporary: str | None = None
    try:
        target = path.expanduser().resolve()  # a link is written through, not replaced
        if target.exists() and not target.is_file():
            raise ChuanError(f"{path} is not a regular file; choose another name")
        document = json.dumps({"messages": conversation.messages}, ensure_ascii=False, indent=2) + "\n"
        data = document.encode("utf-8")
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name[:40]}.", suffix=".tmp", dir=target.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        temporary = None
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: no such home; ValueError: not a file name
        raise ChuanError(f"cannot save to {path}: {_reason(error)}; choose another name") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def load_conversation(path: Path) -> Conversation:
    """Reads what `save_conversation` wrote, or somebody by hand; anything else is refused."""
    try:
        source = path.expanduser()
        if source.exists() and not source.is_file():  # a device may have no end
            raise ChuanError(f"{path} is not a regular file; choose another name")
        document = json.loads(source.read_bytes().decode("utf-8"))
    except (OSError, RuntimeError) as error:  # RuntimeError: no such home, or brackets nested too deeply
        raise ChuanError(f"cannot load {path}: {_reason(error)}") from error
    except UnicodeDecodeError as error:
        raise ChuanError(f"{path} is not UTF-8 text; convert it to UTF-8") from error
    except ValueError as error:
        raise ChuanError(f"{path} is not a saved conversation: {first_line(error)}") from error
    if not isinstance(document, dict) or set(document) != {"messages"} or not isinstance(document["messages"], list):
        raise ChuanError(f'{path} is not a saved conversation: it must hold {{"messages": [...]}} and nothing else')
    messages = [_check_message(message, index, path) for index, message in enumerate(document["messages"])]
    system = messages.pop(0)["content"] if messages and messages[0]["role"] == "system" else None
    return Conversation(system, tuple(messages))


def _check_message(message: Any, index: int, path: Path) -> Message:
    where = f"message {index + 1} of {path}"
    if not isinstance(message, dict) or set(message) != {"role", "content"}:
        raise ChuanError(f"{where} must have a role and a content, and nothing else")
    role, content = message["role"], message["content"]
    if not isinstance(content, str):
        raise ChuanError(f"{where}: the content must be text")
    if role == "system" and index > 0:
        raise ChuanError(f"{where}: only the first message may be the system's")
    if not isinstance(role, str) or role not in ("system", "user", "assistant"):
        raise ChuanError(f"{where}: the role must be system, user or assistant, not {role!r}")
    _check_encodable(content, where)
    return {"role": role, "content": content}


def _check_encodable(text: str, what: str) -> None:
    """Half of a surrogate pair (a terminal in another encoding, a JSON escape) can be neither tokenized nor saved."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ChuanError(f"{what} is not valid Unicode; type or convert it in UTF-8") from error


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
