"""Cutting Markdown into blocks, however the stream cuts it."""

from __future__ import annotations

import pytest

from chuan.terminal.blocks import BlockSplitter


def split(pieces: list[str]) -> list[str]:
    splitter = BlockSplitter()
    finished = [block for piece in pieces for block in splitter.feed(piece)]
    return [block.strip("\n") for block in [*finished, splitter.finish()]]


CASES = [
    ("one\ntwo\n\nthree", ["one\ntwo", "three"]),
    ("\n\none\n\n\n\ntwo\n", ["one", "two"]),
    ("one\n \t\ntwo", ["one\n \t", "two"]),
    ("a\n\n```py\nx\n\ny\n```\n\nb", ["a", "```py\nx\n\ny\n```", "b"]),
    ("~~~\n```\n\nx\n~~~\n\nb", ["~~~\n```\n\nx\n~~~", "b"]),
    ("````\n```\n\n```\n\n````\n\nb", ["````\n```\n\n```\n\n````", "b"]),
    ("```\n``` not closed\n\nx\n```\n\nb", ["```\n``` not closed\n\nx\n```", "b"]),
    ("```inline``` code\n\nb", ["```inline``` code", "b"]),
    ("1. a\n\n   more\n\n2. b", ["1. a\n\n   more", "2. b"]),
    ("1. a\n\n   ```\n   x\n\n   y\n   ```\n\nb", ["1. a\n\n   ```\n   x\n\n   y\n   ```", "b"]),
    ("", [""]),
]


@pytest.mark.parametrize(("text", "blocks"), CASES)
def test_blocks(text: str, blocks: list[str]) -> None:
    assert split([text]) == blocks


@pytest.mark.parametrize(("text", "blocks"), CASES)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_cuts_of_the_stream_do_not_matter(text: str, blocks: list[str], size: int) -> None:
    assert split([text[start : start + size] for start in range(0, len(text), size)]) == blocks


def test_a_block_is_finished_as_soon_as_the_next_begins() -> None:
    splitter = BlockSplitter()
    assert splitter.feed("one\n\n") == []
    assert splitter.feed("t") == ["one\n"]
    assert splitter.finish() == "t"


def test_the_preview_is_bounded_and_stays_in_its_fence() -> None:
    splitter = BlockSplitter()
    splitter.feed("```py\n" + "".join(f"line {number}\n" for number in range(1000)) + "x" * 5000)
    preview = splitter.preview(width=40, height=10).split("\n")
    assert preview[:2] == ["```py", "line 990"]
    assert len(preview) == 12
    assert preview[-1] == "x" * 400
