"""Rows of shards: windows of the stream, whose documents end where they end."""

import numpy as np
import pytest

from chuan.corpus.shards import ShardReader
from chuan.errors import ChuanError
from chuan.training.rows import IGNORED, Batch, ShardRows, take_batch
from tests.support.tiny_shards import build_tiny_shards


@pytest.fixture
def reader(tmp_path):
    return ShardReader(build_tiny_shards(tmp_path)[0])


def test_a_pass_takes_every_token_once(reader):
    rows = ShardRows(reader, 16, seed=3)
    stream = reader.window(0, len(rows) * 16 + 1).tokens
    seen = {tuple(rows.row(number).tokens) for number in range(len(rows))}
    assert seen == {tuple(stream[start : start + 16]) for start in range(0, len(rows) * 16, 16)}


def test_targets_are_the_next_tokens_and_stop_at_a_documents_end(reader):
    rows = ShardRows(reader, 16, seed=3, shuffle=False)
    eos = reader.manifest.tokenizer.eos_id
    stream = reader.window(0, reader.token_count).tokens.astype(np.int64)
    for number in range(len(rows)):
        row = rows.row(number)
        following = stream[number * 16 + 1 : number * 16 + 17]
        ends = row.tokens == eos
        assert (row.targets[~ends] == following[~ends]).all()
        assert (row.targets[ends] == IGNORED).all()
        assert (np.diff(row.documents) == ends[:-1]).all()


def test_rows_are_a_pure_function_of_their_number(reader):
    first, second = (ShardRows(reader, 16, seed=3) for _ in range(2))
    numbers = [5, 0, len(first) + 5, 2 * len(first)]
    assert all((first.row(number).tokens == second.row(number).tokens).all() for number in numbers)
    other = ShardRows(reader, 16, seed=4)
    assert any((first.row(number).tokens != other.row(number).tokens).any() for number in range(8))


def test_a_batch_splits_into_parts_of_the_same_rows(reader):
    batch = take_batch(ShardRows(reader, 16, seed=3), 2, 5)
    parts = batch.split(2)
    assert [len(part.tokens) for part in parts] == [2, 2, 1]
    assert sum(part.target_count for part in parts) == batch.target_count
    joined = Batch(*(np.concatenate([getattr(part, name) for part in parts]) for name in vars(batch)))
    assert (joined.tokens == batch.tokens).all()


def test_shards_without_a_row_are_refused(tmp_path):
    reader = ShardReader(build_tiny_shards(tmp_path, documents=0)[0])
    with pytest.raises(ChuanError, match="less than one row of 16"):
        ShardRows(reader, 16, seed=0)
