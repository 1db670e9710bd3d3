import gzip
import io

import pytest
import zstandard

from chuan.corpus import streams
from chuan.corpus.streams import BrokenStreamError, open_stream, read_chunks, read_lines

TEXT = "".join(f"行 {i} {'x' * (i % 50)}\n" for i in range(20_000)).encode()
COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


def read_all(path):
    """What is read before a break, and the break."""
    content = []
    try:
        content.extend(read_chunks(path))
    except BrokenStreamError as error:
        return b"".join(content), error
    return b"".join(content), None


@pytest.mark.parametrize("suffix", COMPRESS)
def test_reads_what_was_written(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(COMPRESS[suffix](TEXT))
    assert read_all(path) == (TEXT, None)
    assert [line for _, line in read_lines(path)] == TEXT.splitlines()
    assert [number for number, _ in read_lines(path)] == list(range(1, 20_001))
    with open_stream(path) as stream:
        assert stream.readline() == TEXT.splitlines(keepends=True)[0]
        assert stream.read() == TEXT[len(TEXT.splitlines(keepends=True)[0]) :]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_members_follow_each_other(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    padding = b"\0" * 512 if suffix == ".gz" else b""
    path.write_bytes(COMPRESS[suffix](TEXT) + COMPRESS[suffix](b"second\n") + padding)
    assert read_all(path) == (TEXT + b"second\n", None)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("cut", [0.999, 0.6, 0.01])
def test_a_file_that_is_cut_gives_what_is_there_and_says_so(tmp_path, suffix, cut):
    data = COMPRESS[suffix](TEXT)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data[: int(len(data) * cut)])
    content, error = read_all(path)
    assert TEXT.startswith(content)
    assert "cut off" in str(error)
    whole = []
    generator = read_lines(path)
    with pytest.raises(BrokenStreamError):  # noqa: PT012
        while True:
            whole.append(next(generator)[1])
    assert whole == TEXT[: content.rfind(b"\n") + 1].splitlines()


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_damage_in_the_middle_says_how_much_is_lost(tmp_path, suffix):
    data = bytearray(COMPRESS[suffix](TEXT) * 4)
    at = len(data) // 2 + 2
    data[at : at + 40] = b"\xff" * 40
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    content, error = read_all(path)
    assert content.startswith(TEXT)
    assert "damaged" in str(error)
    assert 0.3 < error.lost < 0.7


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_name_that_lies(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"plain text")
    assert "does not begin as" in str(read_all(path)[1])
    path.write_bytes(b"")
    assert read_all(path) == (b"", None)


def test_a_missing_file_is_a_break(tmp_path):
    assert "No such file" in str(read_all(tmp_path / "none")[1])


def test_a_line_without_end_is_dropped_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "MAX_LINE", 1000)
    monkeypatch.setattr(streams, "_PLAIN_CHUNK", 64)
    path = tmp_path / "a"
    path.write_bytes(b"first\n" + b"x" * 5000 + b"\nthird\n" + b"y" * 2000)
    assert list(read_lines(path)) == [(1, b"first"), (2, None), (3, b"third"), (4, None)]


def test_a_stream_over_a_broken_file_raises(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(TEXT)[:1000])
    with open_stream(path) as stream, pytest.raises(BrokenStreamError):
        io.TextIOWrapper(stream, encoding="utf-8").read()
