"""Text out of WARC and WET archives.

In: an archive, compressed or not. Out: a function a record, which gives its text or None where it holds none; reading
is put off so that tasks that share an archive parse only their own pages. Knows nothing of languages and rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding
from resiliparse.parse.html import HTMLTree
from warcio.archiveiterator import ArchiveIterator
from warcio.exceptions import ArchiveLoadFailed

from chuan.corpus.streams import BrokenStreamError, open_stream
from chuan.errors import first_line

_HTML = ("text/html", "application/xhtml+xml")


def read_warc_records(path: Path, encodings: Sequence[str]) -> Iterator[tuple[int, Callable[[], str | None]]]:
    """Each record's number, from 1, and a function that reads its text: what a page says, without its menus.

    The function raises ValueError for a record that is cut or in no encoding that is known; the iterator raises
    BrokenStreamError where the archive cannot be read on.
    """
    number = 0
    with open_stream(path) as stream:
        try:
            archive, errors = ArchiveIterator(stream), 0
            for number, record in enumerate(archive, 1):
                if archive.err_count > errors:  # the library goes on, and says so on stderr alone
                    errors = archive.err_count
                    yield number - 1, _raise_wrong_length
                yield number, lambda record=record: _text_of(record, encodings)  # type: ignore[misc]
            if archive.err_count > errors:
                yield number, _raise_wrong_length
        except (ArchiveLoadFailed, EOFError, UnicodeDecodeError) as error:
            raise BrokenStreamError(f"the archive is damaged: {first_line(error)}", 0.0 if number else 1.0) from None


def _text_of(record: Any, encodings: Sequence[str]) -> str | None:
    if record.rec_type == "conversion":  # WET: text that was extracted before
        return _decode(_content(record), encodings)
    if record.rec_type != "response" or record.http_headers is None or record.http_headers.get_statuscode() != "200":
        return None
    kind, _, parameters = (record.http_headers.get_header("Content-Type") or "").lower().partition(";")
    if kind.strip() == "text/plain":
        return _decode(_content(record), encodings)
    if kind.strip() not in _HTML:
        return None
    content = _content(record)
    _, _, charset = parameters.partition("charset=")
    charset = charset.strip(" \"'") or detect_encoding(content) or "utf-8"
    try:
        page = bytes_to_str(content, charset)
    except LookupError:
        page = bytes_to_str(content, detect_encoding(content) or "utf-8")
    return extract_plain_text(HTMLTree.parse(page), main_content=True, alt_texts=False, noscript=False) or None


def _raise_wrong_length() -> str | None:
    raise ValueError("the record's length is wrong: more of it lies behind its end")


def _content(record: Any) -> bytes:
    content = record.content_stream().read()
    if record.raw_stream.limit > 0:
        raise ValueError("the record is cut off: it holds less than its header says")
    return content


def _decode(content: bytes, encodings: Sequence[str]) -> str:
    for encoding in encodings:
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise ValueError(f"the text is not {' or '.join(encodings)}")
