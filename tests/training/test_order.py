"""The shuffle hits every place once, depends on the seed, and differs from pass to pass."""

from itertools import pairwise

import pytest

from chuan.training.order import locate, permute


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 100, 257, 1000])
def test_every_place_is_hit_once(size):
    assert sorted(permute(position, size, "a") for position in range(size)) == list(range(size))


def test_it_shuffles_and_the_key_matters():
    orders = [[permute(position, 1000, key) for position in range(1000)] for key in ("a", "b")]
    assert orders[0] != orders[1]
    for order in orders:
        stay = sum(place == position for position, place in enumerate(order))
        follow = sum(b == a + 1 for a, b in pairwise(order))
        assert stay < 10
        assert follow < 10


def test_a_pass_is_a_shuffle_of_its_own():
    passes = [[locate(number, 50, 7)[1] for number in range(start, start + 50)] for start in (0, 50)]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(50))
    assert passes[0] != passes[1]
    assert [locate(number, 50, 7)[0] for number in (49, 50, 149)] == [0, 1, 2]


def test_a_position_outside_is_refused():
    with pytest.raises(IndexError):
        permute(5, 5, "a")
