"""The forms in which people have conversations, and records that are of no use."""

import gzip
import json
from pathlib import Path

import pytest
import zstandard

from chuan.chat.messages import Message
from chuan.errors import ChuanError
from chuan.training.conversations import read_conversations, read_record

ASKED = (Message("user", "1 + 1?"), Message("assistant", "2"))
RECORDS = [
    {"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]},
    {"conversations": [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}]},
    {"id": 7, "conversations": [{"from": "human", "value": "1 + 1?"}, {"from": "assistant", "value": "2"}]},
    {"instruction": "1 + 1?", "output": "2"},
    {"instruction": "1 + 1?", "input": "", "output": "2", "history": []},
]


@pytest.mark.parametrize("record", RECORDS)
def test_every_form_says_the_same(record):
    assert read_record(json.dumps(record)) == ASKED
    assert read_record(record) == ASKED


def test_alpaca_has_inputs_system_and_history():
    record = {"instruction": "Translate", "input": "川", "output": "river", "system": "Brief.", "history": [["a", "b"]]}
    assert read_record(record) == (
        Message("system", "Brief."),
        Message("user", "a"),
        Message("assistant", "b"),
        Message("user", "Translate\n川"),
        Message("assistant", "river"),
    )


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "none of messages"),
        ('{"text": "a"}', "none of messages"),
        ('{"messages": "a"}', "none of messages"),
        ('{"messages": [1]}', "a turn must be a table"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "no answer to learn from"),
        ('{"messages": [{"role": "judge", "content": "a"}]}', "the role 'judge'"),
        ('{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": " "}]}', "has no text"),
        ('{"instruction": "a"}', "has no text"),
        ('{"instruction": "a", "input": 3, "output": "b"}', "input must be text"),
        ('{"instruction": "a", "history": [3], "output": "b"}', "history must hold pairs"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_what_cannot_be_learned_from_says_why(record, reason):
    with pytest.raises(ChuanError, match=reason):
        read_record(record)


def test_files_plain_packed_and_as_an_array(tmp_path: Path):
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
    (tmp_path / "a.jsonl").write_bytes(lines + b"\n{\n")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(lines))
    (tmp_path / "d.json").write_text(json.dumps([*RECORDS, 3]))
    for name, bad in (("a.jsonl", ", line 7"), ("b.jsonl.gz", ""), ("c.jsonl.zst", ""), ("d.json", ", record 6")):
        found = list(read_conversations(tmp_path / name))
        assert [messages for _, messages in found if not isinstance(messages, str)] == [ASKED] * len(RECORDS)
        places = [place for place, messages in found if isinstance(messages, str)]
        assert places == ([f"{tmp_path / name}{bad}"] if bad else [])


def test_a_cut_file_gives_what_is_readable_and_says_what_is_lost(tmp_path: Path):
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(json.dumps(r).encode() + b"\n" for r in RECORDS * 2000), mtime=0)[:-40])
    *read, (place, reason) = read_conversations(path)
    assert len(read) > len(RECORDS)
    assert place.endswith("its rest")
    assert "lost" in reason


def test_files_that_are_no_conversations_are_refused(tmp_path: Path):
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.json").write_text('{"messages": []}\n{"messages": []}')
    for name, reason in (("a.json", "no array"), ("b.json", "named .jsonl"), ("c.jsonl", "is not there")):
        with pytest.raises(ChuanError, match=reason):
            list(read_conversations(tmp_path / name))
