import json
import os
from pathlib import Path

import pytest

from chuan.json_file import read_json, read_json_if_there, render_json, save_json
from tests.support.loading import refusal


def test_a_table_is_read(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text('{"名": "百川"}', encoding="utf-8")
    assert read_json(path) == read_json_if_there(path) == {"名": "百川"}


def test_a_missing_file_is_refused_or_empty(tmp_path: Path):
    path = tmp_path / "a.json"
    assert f"{path} is missing; fetch it again" in refusal(read_json, path)
    assert read_json_if_there(path) == {}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"a": 1} x', b"\xff\xfe{}", b'{"a": ' + b"[" * 100_000, b'{"a": ' + b"1" * 5000 + b"}"],
    ids=["empty", "cut short", "trailing text", "not UTF-8", "nested too deep", "number too long"],
)
def test_what_is_no_json_is_one_line(tmp_path: Path, content: bytes):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    assert f"{path} is not valid JSON; fetch it again" in refusal(read_json, path)


@pytest.mark.parametrize(("content", "kind"), [("[]", "list"), ("null", "NoneType"), ('"a"', "str"), ("1", "int")])
def test_what_is_no_table_is_one_line(tmp_path: Path, content: str, kind: str):
    path = tmp_path / "a.json"
    path.write_text(content)
    assert f"{path} must hold a JSON object, not {kind}" in refusal(read_json, path)


def test_a_pipe_in_the_place_of_a_file_is_one_line(tmp_path: Path):
    os.mkfifo(tmp_path / "a.json")
    assert "is no file" in refusal(read_json, tmp_path / "a.json")


def test_half_a_surrogate_pair_is_written_and_comes_back(tmp_path: Path):
    path = tmp_path / "a.json"
    for text in ("\ud800", "百\udfff\\", "\\ud800"):
        save_json(path, {"text": text})
        assert read_json(path) == {"text": text}
        assert json.loads(render_json({"text": text})) == {"text": text}


def test_a_folder_in_the_place_of_a_file_is_one_line(tmp_path: Path):
    assert "is no file" in refusal(read_json, tmp_path)
