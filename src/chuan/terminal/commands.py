"""The commands that begin with a slash, and the line that is typed: what it does to the conversation.

In: the conversation and one typed line. Out: a `Step`: the next conversation, what the chat does then, and a note for
the user. Knows no model and no terminal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from chuan.errors import ChuanError
from chuan.terminal.conversation import Conversation, load_conversation, save_conversation


@dataclass(frozen=True)
class Step:
    """What follows from a typed line: `answer` asks the model for the conversation's next turn."""

    conversation: Conversation
    action: Literal["prompt", "answer", "exit"] = "prompt"
    note: str = ""


@dataclass(frozen=True)
class Command:
    """A command: its names (the first is shown), what stands after it, what it does."""

    names: tuple[str, ...]
    argument: Literal["", "[TEXT]", "FILE"]
    help: str
    apply: Callable[[Conversation, str], Step]


def interpret_line(conversation: Conversation, line: str) -> Step:
    """A message or a command, carried out on the conversation; what cannot be done raises ChuanError."""
    if line.startswith("//"):
        return Step(conversation.add_user(line[1:]), "answer")
    if not line.startswith("/"):
        return Step(conversation.add_user(line), "answer")
    name, *rest = line.split(maxsplit=1)
    argument = rest[0].strip() if rest else ""
    for command in COMMANDS:
        if name in command.names:
            if argument and not command.argument:
                raise ChuanError(f"{name} takes nothing after it; a message that begins with a slash is typed as //")
            if command.argument == "FILE" and not argument:
                raise ChuanError(f"{name} needs the name of a file: {name} FILE")
            return command.apply(conversation, argument)
    raise ChuanError(f"there is no command {name}; /help lists them, and // begins a message with a slash")


def render_help() -> str:
    """The table of commands and keys, as /help shows it."""
    rows = [(f"{command.names[0]} {command.argument}".strip(), command.help) for command in COMMANDS]
    rows += [
        ("//...", "a message that begins with a slash"),
        ("Alt-Enter", "a new line (Ctrl-J too); Enter sends"),
        ("Ctrl-C", "stop the answer, or clear the line"),
        ("Ctrl-D", "leave"),
    ]
    width = max(len(left) for left, _ in rows)
    return "\n".join(f"{left:<{width}}  {right}" for left, right in rows)


def _help(conversation: Conversation, _: str) -> Step:
    return Step(conversation, note=render_help())


def _clear(conversation: Conversation, _: str) -> Step:
    return Step(conversation.clear(), note="A new conversation.")


def _system(conversation: Conversation, text: str) -> Step:
    if not text:
        return Step(conversation, note=f"System prompt: {conversation.system or 'none'}")
    changed = conversation.set_system("" if text == '""' else text)
    return Step(changed, note="System prompt set." if changed.system else "System prompt removed.")


def _save(conversation: Conversation, name: str) -> Step:
    save_conversation(conversation, Path(name))
    return Step(conversation, note=f"Saved {len(conversation.messages)} messages to {name}")


def _load(_: Conversation, name: str) -> Step:
    loaded = load_conversation(Path(name))
    return Step(loaded, note=f"Loaded {len(loaded.messages)} messages from {name}")


def _retry(conversation: Conversation, _: str) -> Step:
    return Step(conversation.undo_answer(), "answer")


def _exit(conversation: Conversation, _: str) -> Step:
    return Step(conversation, "exit")


COMMANDS = (
    Command(("/help",), "", "this list", _help),
    Command(("/clear",), "", "forget the conversation, keep the system prompt", _clear),
    Command(("/system",), "[TEXT]", 'set the system prompt ("" removes it), or show it', _system),
    Command(("/save",), "FILE", "save the conversation as JSON", _save),
    Command(("/load",), "FILE", "go on with a saved conversation", _load),
    Command(("/retry",), "", "answer the last message once more", _retry),
    Command(("/exit", "/quit"), "", "leave (/quit too)", _exit),
)
