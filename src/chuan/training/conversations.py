"""Conversations out of files, in the forms that people have them.

In: JSON lines (plain, gzip or zstd), or a JSON array. Out: checked messages, or what is wrong with a record and where.
Knows no chat format and no tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from chuan.chat.messages import Message, check_messages
from chuan.corpus.streams import BrokenStreamError, read_chunks, read_lines
from chuan.errors import ChuanError, first_line

# Names that the forms give the roles.
_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
}


def read_conversations(path: Path) -> Iterator[tuple[str, tuple[Message, ...] | str]]:
    """(place, messages) of each record, or (place, what is wrong with it). A broken file is one such record at its end.

    Raises ChuanError for a file that is not there.
    """
    if not path.is_file():
        raise ChuanError(f"{path} is not there; name the files of conversations as data.files")
    try:
        for place, text in _read_array(path) if path.suffix == ".json" else _read_lines(path):
            try:
                yield place, read_record(text)
            except ChuanError as error:
                yield place, str(error)
    except BrokenStreamError as error:
        yield f"{path}, its rest", f"{error}; {error.lost:.0%} of the file is lost"


def read_record(text: str | bytes | Mapping[str, Any]) -> tuple[Message, ...]:
    """A record, or its JSON, to messages: `messages` (OpenAI), `conversations` (ShareGPT, Baichuan: from and value), or
    `instruction`, `input`, `output` (Alpaca), with `system` and `history` where they are.

    Raises ChuanError for what cannot be read or has no answer to learn from.
    """
    if not isinstance(text, Mapping):
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ChuanError(f"the record is not JSON: {first_line(error):.200}") from None
    else:
        record = text
    messages = check_messages(_find_messages(record))
    if not any(message.role == "assistant" for message in messages):
        raise ChuanError("the conversation has no answer to learn from")
    return messages


def _find_messages(record: Any) -> Sequence[Mapping[str, Any]]:
    if isinstance(record, Mapping):
        turns = record.get("messages", record.get("conversations"))
        if isinstance(turns, list):
            return [_rename(turn) for turn in turns]
        if isinstance(record.get("instruction"), str):
            return _read_alpaca(record)
    raise ChuanError("the record has none of messages, conversations, and instruction with output")


def _rename(turn: Any) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise ChuanError(f"a turn must be a table of a role and its text, not {turn!r:.60}")
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    return {"role": _ROLES.get(role, role) if isinstance(role, str) else role, "content": content}


def _read_alpaca(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    turns = [{"role": "system", "content": record["system"]}] if record.get("system") else []
    for pair in record.get("history") or ():
        if not isinstance(pair, list) or len(pair) != 2:
            raise ChuanError(f"history must hold pairs of a question and its answer, not {pair!r:.60}")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    given = record.get("input") or ""
    if not isinstance(given, str):
        raise ChuanError(f"input must be text, not {given!r:.60}")
    question = f"{record['instruction']}\n{given}" if given else record["instruction"]
    return [*turns, {"role": "user", "content": question}, {"role": "assistant", "content": record.get("output")}]


def _read_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    for number, line in read_lines(path):
        if line is None or line.strip():
            yield f"{path}, line {number}", line if line is not None else b"a line of more than 64 MiB"


def _read_array(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        records = json.loads(b"".join(read_chunks(path)))
    except (ValueError, RecursionError) as error:
        raise ChuanError(f"{path} is not JSON: {first_line(error):.200}; JSON lines are named .jsonl") from None
    if not isinstance(records, list):
        raise ChuanError(f"{path} is no array of conversations; one conversation a line is named .jsonl")
    for number, record in enumerate(records, 1):
        yield f"{path}, record {number}", record if isinstance(record, Mapping) else json.dumps(record)
