import pytest
from pydantic import ValidationError

from chuan.corpus.sources import SourceSettings, assign_pieces, find_files
from chuan.errors import ChuanError


def test_files_of_a_pattern_in_the_order_of_their_names(tmp_path):
    for name in ["b/2.jsonl", "a/1.jsonl.gz", "a/3.parquet"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    files = find_files([SourceSettings(name="s", path="**/*.*")], str(tmp_path))
    assert [(file.name, file.format) for file in files] == [
        ("a/1.jsonl.gz", "jsonl"),
        ("a/3.parquet", "parquet"),
        ("b/2.jsonl", "jsonl"),
    ]
    assert [file.name for file in find_files([SourceSettings(name="s", path="b/2.jsonl")], str(tmp_path))] == [
        "2.jsonl"
    ]


def test_what_cannot_be_found_or_told_is_one_line(tmp_path):
    with pytest.raises(ChuanError, match="source s: no file matches .*; name the folder of the data by --set data="):
        find_files([SourceSettings(name="s", path="*.jsonl")], str(tmp_path))
    (tmp_path / "a.bin").write_bytes(b"x")
    with pytest.raises(ChuanError, match="format of .*a.bin cannot be told"):
        find_files([SourceSettings(name="s", path="a.bin")], str(tmp_path))
    assert find_files([SourceSettings(name="s", path="a.bin", format="txt")], str(tmp_path))[0].format == "txt"
    with pytest.raises(ChuanError, match="two sources are called s"):
        find_files([SourceSettings(name="s", path="a.bin", format="txt")] * 2, str(tmp_path))


@pytest.mark.parametrize(
    ("encodings", "what"), [(["klingon"], "no encoding"), (["utf-16"], "does not extend"), ([], "one")]
)
def test_encodings_are_checked(encodings, what):
    with pytest.raises(ValidationError, match=what):
        SourceSettings(name="s", path="x", encodings=encodings)


def test_pieces_are_of_like_size(tmp_path):
    for name, size in [("large", 9_000_000), ("middle", 2_000_000), ("small", 10)]:
        with (tmp_path / f"{name}.jsonl").open("wb") as file:
            file.truncate(size)
    files = find_files([SourceSettings(name="s", path="*.jsonl")], str(tmp_path))
    tasks = assign_pieces(files, 4)
    loads = [sum(piece.file.size / piece.parts for piece in task) for task in tasks]
    assert max(loads) < 1.4 * sum(loads) / 4
    parts = sorted((piece.file.name, piece.part) for task in tasks for piece in task)
    assert parts == [
        *(("large.jsonl", i) for i in range(4)),
        *(("middle.jsonl", i) for i in range(2)),
        ("small.jsonl", 0),
    ]
    assert [len(task) for task in assign_pieces(files, 1)] == [3]
