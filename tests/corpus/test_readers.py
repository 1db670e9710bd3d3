import gzip
import io
import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from chuan.corpus.readers import Bad, CorpusReader, read_records, render_messages
from chuan.corpus.sources import Piece, SourceSettings, assign_pieces, find_files


def read(tmp_path, name, **settings):
    """The records of one file, good and bad."""
    files = find_files([SourceSettings(name="s", path=name, **settings)], str(tmp_path))
    return [record for _, record in read_records(Piece(files[0]))]


def whats(records):
    return [record.what if isinstance(record, Bad) else record for record in records]


def test_jsonl_texts_and_dialogues(tmp_path):
    lines = [
        {"text": "一"},
        {"messages": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好！"}]},
        {"text": ""},
    ]
    (tmp_path / "a.jsonl").write_text("\ufeff" + "\n\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert read(tmp_path, "a.jsonl") == ["一", "你好\n你好！", ""]
    for suffix, compress in [("gz", gzip.compress), ("zst", zstandard.ZstdCompressor().compress)]:
        (tmp_path / f"a.jsonl.{suffix}").write_bytes(compress((tmp_path / "a.jsonl").read_bytes()))
        assert read(tmp_path, f"a.jsonl.{suffix}") == ["一", "你好\n你好！", ""]


def test_dialogues_in_parts():
    assert render_messages([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}]) == "a"
    assert render_messages([{"role": "user"}]) is None
    assert render_messages([]) is None
    assert render_messages("text") is None


def test_each_bad_line_is_set_aside_with_what_is_wrong(tmp_path):
    lines = [
        b'{"text": "good"}',
        b'{"text": "cut',
        b"[1, 2]",
        b'{"body": "x", "title": "y"}',
        b'{"text": 7}',
        '{"text": "中文"}'.encode("gb18030"),
        b'{"messages": "x"}',
        b'{"text": "\\ud800"}',
        b'{"text": "good too"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    found = whats(read(tmp_path, "a.jsonl"))
    assert found[0] == "good"
    assert found[-1] == "good too"
    for what, pattern in zip(
        found[1:-1],
        [
            "not JSON",
            "no record",
            "has no text; its keys are body, title",
            "is no text",
            "not utf-8",
            "no list",
            "JSON",
        ],
        strict=True,
    ):
        assert pattern in what


def test_mixed_encodings_are_read_where_the_recipe_names_them(tmp_path):
    lines = ['{"text": "简体"}'.encode("gb18030"), '{"text": "简体"}'.encode()]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    assert read(tmp_path, "a.jsonl", encodings=["utf-8", "gb18030"]) == ["简体", "简体"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_file_that_is_cut_off_keeps_its_whole_records(tmp_path, name):
    text = "".join(json.dumps({"text": f"{i} {i * 7919 % 1009}"}) + "\n" for i in range(5000)).encode()
    data = gzip.compress(text) if name.endswith("gz") else zstandard.ZstdCompressor(1).compress(text)
    (tmp_path / name).write_bytes(data[: len(data) * 2 // 3])
    *good, last = read(tmp_path, name)
    assert "cut off" in last.what
    assert good == [f"{i} {i * 7919 % 1009}" for i in range(len(good))]


def test_an_empty_file_is_reported(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"")
    assert whats(read(tmp_path, "a.jsonl")) == ["the file is empty"]


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": ["一", None, "three"], "url": ["a", "b", "c"]})
    pyarrow.parquet.write_table(table, path)
    assert whats(read(tmp_path, "a.parquet")) == ["一", "the record has no text; its keys are text", "three"]
    pyarrow.parquet.write_table(pyarrow.table({"messages": [[{"role": "user", "content": "a"}]]}), path)
    assert read(tmp_path, "a.parquet") == ["a"]
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x", "y"]}), path)
    assert "has no text; its columns are body" in read(tmp_path, "a.parquet")[0].what
    assert read(tmp_path, "a.parquet")[0].records == 2


def test_parquet_that_is_damaged(tmp_path):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": [f"{i} {i * 7919 % 1009}" for i in range(1000)]})
    pyarrow.parquet.write_table(table, path, row_group_size=500, compression="zstd", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[40:400] = b"\xff" * 360  # in the first group
    path.write_bytes(data)
    records = read(tmp_path, "a.parquet")
    assert sum(record.records for record in records if isinstance(record, Bad)) == 500
    assert [record for record in records if isinstance(record, str)] == table["text"].to_pylist()[500:]
    path.write_bytes(data[:-100])
    assert "cannot be read" in read(tmp_path, "a.parquet")[0].what


def test_txt(tmp_path):
    (tmp_path / "a.txt").write_text("一本书\n第二行\n", encoding="utf-8")
    assert read(tmp_path, "a.txt") == ["一本书\n第二行\n"]
    (tmp_path / "a.txt").write_bytes("一本书".encode("gb18030"))
    assert whats(read(tmp_path, "a.txt")) == ["the text is not utf-8"]
    assert read(tmp_path, "a.txt", encodings=["utf-8", "gb18030"]) == ["一本书"]


def test_a_long_text_is_cut_at_a_line_end(tmp_path):
    text = "".join(f"第{i}行，一二三四五六七八九十。\n" for i in range(60_000))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    records = read(tmp_path, "a.txt.gz")
    assert len(records) > 2
    assert "".join(records) == text
    assert all(record.endswith("。\n") and len(record.encode()) <= 1 << 20 for record in records)


def write_warc(path, gzipped=True):
    page = (
        "<html><head><title>t</title></head><body><nav><a href='/'>首页</a></nav><article>"
        "<p>正文第一段，很长的一段话。</p>"
        "<p>第二段。</p></article></body></html>"
    )
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=gzipped)

        def add(content, kind="text/html; charset=utf-8", status="200 OK"):
            headers = StatusAndHeaders(status, [("Content-Type", kind)], protocol="HTTP/1.1")
            record = writer.create_warc_record("http://a/", "response", io.BytesIO(content), http_headers=headers)
            writer.write_record(record)

        writer.write_record(writer.create_warcinfo_record("a.warc", {"software": "test"}))
        add(page.encode())
        add(page.encode("gb18030"), "text/html; charset=gb18030")
        add(page.encode("gb18030"), "text/html")
        add(b"\x89PNG", "image/png")
        add(page.encode(), status="404 Not Found")
        add("纯文本".encode(), "text/plain")


@pytest.mark.parametrize("gzipped", [True, False])
def test_warc(tmp_path, gzipped):
    name = "a.warc.gz" if gzipped else "a.warc"
    write_warc(tmp_path / name, gzipped)
    records = read(tmp_path, name)
    texts = [record for record in records if record is not None]
    assert len(records) == 7
    assert texts[3] == "纯文本"
    for text in texts[:3]:
        assert "正文第一段，很长的一段话。" in text
        assert "首页" not in text


def test_warc_that_is_cut(tmp_path):
    write_warc(tmp_path / "a.warc.gz")
    data = (tmp_path / "a.warc.gz").read_bytes()
    (tmp_path / "a.warc.gz").write_bytes(data[:-30])
    bad = [record for record in read(tmp_path, "a.warc.gz") if isinstance(record, Bad)]
    assert len(bad) == 1
    assert "cut off" in bad[0].what


def test_wet(tmp_path):
    with (tmp_path / "a.warc.wet.gz").open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for content in ["一页。".encode(), "坏".encode("gb18030")]:
            record = writer.create_warc_record(
                "http://a/", "conversion", io.BytesIO(content), warc_content_type="text/plain"
            )
            writer.write_record(record)
    assert whats(read(tmp_path, "a.warc.wet.gz")) == ["一页。", "the text is not utf-8"]


def test_wet_with_a_wrong_length(tmp_path, capfd):
    with (tmp_path / "a.wet").open("wb") as file:
        writer = WARCWriter(file, gzip=False)
        for content in [b"first page", b"second page"]:
            record = writer.create_warc_record("http://a/", "conversion", io.BytesIO(content))
            writer.write_record(record)
    data = (tmp_path / "a.wet").read_bytes()
    (tmp_path / "a.wet").write_bytes(data.replace(b"Content-Length: 10", b"Content-Length: 05"))
    assert whats(read(tmp_path, "a.wet")) == [
        "first",
        "the record's length is wrong: more of it lies behind its end",
        "second page",
    ]


def test_tasks_share_a_large_file_and_lose_nothing(tmp_path):
    text = "".join(json.dumps({"text": f"{i} {'长' * 300}"}) + "\n" for i in range(3000)).encode() + b"broken\n"
    (tmp_path / "large.jsonl").write_bytes(text)
    (tmp_path / "small.jsonl").write_text('{"text": "small"}\n')
    files = find_files([SourceSettings(name="s", path="*.jsonl")], str(tmp_path))
    pieces = assign_pieces(files, 3)
    assert sum(len(piece) for piece in pieces) == 4
    reader = CorpusReader(pieces, str(tmp_path / "work"))
    by_task = [[document.text for document in reader.run(rank=rank)] for rank in range(3)]
    assert all(by_task)
    texts = [text for texts in by_task for text in texts]
    assert sorted(texts) == sorted([*(f"{i} {'长' * 300}" for i in range(3000)), "small"])
    bad = "".join(path.read_text() for path in (tmp_path / "work" / "bad").iterdir())
    assert json.loads(bad)["record"] == 3001
    counts = [json.loads(path.read_text()) for path in (tmp_path / "work" / "counts").iterdir()]
    assert sum(count["s"]["documents"] for count in counts) == 3001
    assert sum(count["s"]["bad"] for count in counts) == 1
