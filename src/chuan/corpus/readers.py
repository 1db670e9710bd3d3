"""Records out of files: JSON lines, parquet, plain text, WARC and WET.

In: the pieces of each task. Out: documents named SOURCE/FILE/NUMBER with their source; a record that cannot be read is
counted and written to a folder of bad records with its place and what is wrong with it. Knows no rules.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow
import pyarrow.parquet
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from chuan.corpus.sources import Piece, SourceSettings
from chuan.corpus.streams import BrokenStreamError, read_chunks, read_lines
from chuan.corpus.warc import read_warc_records
from chuan.errors import first_line

_BLOCK = 64  # records: how a file is dealt out to the tasks that share it
_PIECE_OF_TEXT = 1 << 20  # bytes: a text file is one document, a longer one is cut at the end of a line
_SHOWN = 300  # characters of a bad record that are kept to look at


@dataclass(frozen=True)
class Bad:
    """A record, or the rest of a file, that cannot be read. `lost_share` is how much of the file is lost with it."""

    what: str
    shown: str = ""
    lost_share: float = 0.0
    records: int = 1


@dataclass
class Counts:
    """What reading a source has met. Bytes are of text in UTF-8."""

    documents: int = 0
    bytes: int = 0
    characters: int = 0
    bad: int = 0
    skipped: int = 0  # records of a WARC that are no text: images, scripts, answers of other codes than 200


class CorpusReader(PipelineStep):
    """Reads the pieces of a task; leaves `bad/RANK.jsonl` and `counts/RANK.json` in its folder of work."""

    type = "📖 - READER"
    name = "Corpus"

    def __init__(self, pieces: list[list[Piece]], work: str) -> None:
        super().__init__()
        self.pieces = pieces
        self.work = work

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        bad_path = Path(self.work, "bad", f"{rank:05d}.jsonl")
        counts_path = Path(self.work, "counts", f"{rank:05d}.json")
        for path in (bad_path, counts_path):
            path.parent.mkdir(parents=True, exist_ok=True)
        counts: dict[str, Counts] = defaultdict(Counts)
        with bad_path.open("w", encoding="utf-8") as bad_file:
            for piece in self.pieces[rank]:
                source, name = piece.file.source, piece.file.name
                count = counts[source.name]
                read_before = count.documents
                for number, record in read_records(piece):
                    if isinstance(record, Bad):
                        # What a break has cost is not known; as many records as the readable part had, by its size.
                        lost = record.records + _guess_lost(record.lost_share, count.documents - read_before)
                        count.bad += lost
                        place = {"source": source.name, "file": name, "record": number, "what": record.what}
                        if lost > 1:
                            place["records_lost"] = lost
                        bad_file.write(json.dumps(place | {"shown": record.shown}, ensure_ascii=False) + "\n")
                    elif record is None:
                        count.skipped += 1
                    else:
                        count.documents += 1
                        count.characters += len(record)
                        count.bytes += len(record.encode("utf-8"))
                        metadata = {"source": source.name}
                        if source.language:
                            metadata["language"] = source.language
                        yield Document(text=record, id=f"{source.name}/{name}/{number}", metadata=metadata)
        counts_path.write_text(json.dumps({name: asdict(count) for name, count in counts.items()}), encoding="utf-8")


def read_records(piece: Piece) -> Iterator[tuple[int, str | Bad | None]]:
    """The records of a piece with their numbers: a text, what is wrong, or None for what is no text."""
    if piece.file.size == 0:
        yield 0, Bad("the file is empty")
        return
    read = {"jsonl": _read_jsonl, "parquet": _read_parquet, "txt": _read_txt, "warc": _read_warc}[piece.file.format]
    yield from read(piece)


def render_messages(messages: object) -> str | None:
    """A dialogue as plain text, a turn a line, without the roles; None where it is no dialogue."""
    if not isinstance(messages, list) or not messages:
        return None
    turns = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            content = "\n".join(part["text"] for part in content if isinstance(part, dict) and "text" in part)
        if not isinstance(content, str):
            return None
        turns.append(content)
    return "\n".join(turns)


def _is_mine(piece: Piece, index: int) -> bool:
    return piece.parts == 1 or index // _BLOCK % piece.parts == piece.part


def _read_jsonl(piece: Piece) -> Iterator[tuple[int, str | Bad | None]]:
    source, number = piece.file.source, 0
    try:
        for number, line in read_lines(Path(piece.file.path)):
            if not _is_mine(piece, number - 1):
                continue
            if line is None:
                yield number, Bad("the line is longer than a record may be")
                continue
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line and not line.isspace():
                yield number, _parse_json(line, source)
    except BrokenStreamError as error:
        if piece.part == 0:
            yield number, Bad(str(error), lost_share=error.lost * piece.parts)


def _parse_json(line: bytes, source: SourceSettings) -> str | Bad:
    shown = line[: 4 * _SHOWN].decode("utf-8", "replace")[:_SHOWN]
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        text = _decode(line, source.encodings)
        if text is None:
            return Bad(f"the line is not {' or '.join(source.encodings)}", shown)
        try:
            record = orjson.loads(text)  # is it JSON in another encoding?
        except (orjson.JSONDecodeError, UnicodeEncodeError):
            return Bad(f"the line is not JSON: {first_line(error)}", shown)
    if not isinstance(record, dict):
        return Bad("the line is JSON, and no record of keys and values", shown)
    return _text_of(record, source, shown)


def _text_of(record: dict[str, Any], source: SourceSettings, shown: str) -> str | Bad:
    if source.text_key not in record and "messages" in record:
        text = render_messages(record["messages"])
        return text if text is not None else Bad("messages is no list of turns with a content", shown)
    text = record.get(source.text_key)
    if text is None:
        return Bad(
            f"the record has no {source.text_key}; its keys are {', '.join(sorted(map(str, record))[:8])}", shown
        )
    return text if isinstance(text, str) else Bad(f"{source.text_key} is no text", shown)


def _decode(data: bytes, encodings: list[str]) -> str | None:
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return None


def _read_txt(piece: Piece) -> Iterator[tuple[int, str | Bad | None]]:
    """A file is a document; where it is long, each megabyte up to a line's end is one."""
    encodings, number, pending = piece.file.source.encodings, 0, b""

    def record(data: bytes) -> str | Bad:
        text = _decode(data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data, encodings)
        return text if text is not None else Bad(f"the text is not {' or '.join(encodings)}", repr(data[:_SHOWN]))

    try:
        for chunk in read_chunks(Path(piece.file.path)):
            pending += chunk
            while len(pending) > _PIECE_OF_TEXT:
                end = pending.rfind(b"\n", 0, _PIECE_OF_TEXT) + 1 or _PIECE_OF_TEXT
                number += 1
                yield number, record(pending[:end])
                pending = pending[end:]
    except BrokenStreamError as error:
        yield number + 1, Bad(str(error), repr(pending[:_SHOWN]), error.lost)
        return
    if pending:
        number += 1
        yield number, record(pending)


def _read_parquet(piece: Piece) -> Iterator[tuple[int, str | Bad | None]]:
    source, number = piece.file.source, 0
    try:
        file = pyarrow.parquet.ParquetFile(piece.file.path)
    except (pyarrow.ArrowException, OSError) as error:
        if piece.part == 0:
            yield 0, Bad(f"the parquet file cannot be read: {first_line(error)}", lost_share=1.0)
        return
    with file:
        names = file.schema_arrow.names
        columns = [name for name in (source.text_key, "messages") if name in names][:1]
        if not columns:
            if piece.part == 0:
                what = f"the table has no {source.text_key}; its columns are {', '.join(names[:8])}"
                yield 0, Bad(what, records=max(1, file.metadata.num_rows))
            return
        for group in range(file.num_row_groups):
            first = number
            rows = file.metadata.row_group(group).num_rows
            try:
                for batch in file.iter_batches(batch_size=_BLOCK, row_groups=[group], columns=columns):
                    mine = [_is_mine(piece, number + i) for i in range(batch.num_rows)]
                    values = batch.column(0).to_pylist() if any(mine) else [None] * batch.num_rows
                    for value, is_mine in zip(values, mine, strict=True):
                        number += 1
                        if is_mine:
                            yield number, _text_of({columns[0]: value}, source, "")
            except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
                if piece.part == 0:
                    what = f"row group {group} cannot be read: {first_line(error)}"
                    yield number + 1, Bad(what, records=first + rows - number)
            number = first + rows


def _read_warc(piece: Piece) -> Iterator[tuple[int, str | Bad | None]]:
    number = 0
    try:
        for number, read in read_warc_records(Path(piece.file.path), piece.file.source.encodings):
            if _is_mine(piece, number - 1):
                try:
                    yield number, read()
                except ValueError as error:
                    yield number, Bad(first_line(error))
    except BrokenStreamError as error:
        if piece.part == 0:
            yield number + 1, Bad(str(error), lost_share=error.lost * piece.parts)


def _guess_lost(share: float, read: int) -> int:
    """Records behind a break, if they are as large as those before it."""
    return round(read * share / (1 - share)) if share < 1 else 0
