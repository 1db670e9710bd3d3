import pytest
import torch

from chuan.errors import ChuanError
from chuan.model.kv_cache import KVCache
from tests.support.tiny import build_tiny_config


def fill(cache: KVCache, start: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.arange(start, start + tokens, dtype=torch.float32).view(1, 1, tokens, 1)
    stored = [cache.update(layer, values + layer, -values) for layer in range(2)]
    cache.advance(tokens)
    return stored[1]


def test_it_grows_and_keeps_everything():
    cache = KVCache(build_tiny_config(max_position_embeddings=5000))
    for start, tokens in [(0, 3), (3, 1), (4, 300), (304, 1), (305, 1000)]:
        keys, values = fill(cache, start, tokens)
    assert cache.length == 1305
    assert keys.flatten().tolist() == [position + 1 for position in range(1305)]
    assert values.flatten().tolist() == [-position for position in range(1305)]


def test_growing_copies_each_key_a_bounded_number_of_times():
    cache = KVCache(build_tiny_config(max_position_embeddings=100_000))
    places = {fill(cache, position, 1)[0].untyped_storage().data_ptr() for position in range(4096)}
    assert len(places) <= 6  # 256, 512, ... 4,096: doubling


def test_truncating_forgets_the_rest():
    cache = KVCache(build_tiny_config())
    fill(cache, 0, 10)
    cache.truncate(4)
    keys, _ = fill(cache, 50, 2)
    assert keys.flatten().tolist() == [1, 2, 3, 4, 51, 52]
    for length in (-1, 7):
        with pytest.raises(ValueError, match="truncate"):
            cache.truncate(length)


def test_beyond_the_context_is_one_line():
    cache = KVCache(build_tiny_config(max_position_embeddings=16))
    fill(cache, 0, 16)
    with pytest.raises(ChuanError, match="do not fit a context of 16"):
        fill(cache, 16, 1)
