"""However the work is spread, loss and gradients are those of one process."""

import json

import pytest
import torch

from chuan.errors import ChuanError
from chuan.training.parallel import ParallelSettings, check_tensor_parallel
from tests.support.gradients import compute_gradients
from tests.support.tiny import build_tiny_config
from tests.support.torchrun import torchrun


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, torch.Tensor]:
    path = tmp_path_factory.mktemp("alone") / "gradients.pt"
    compute_gradients(ParallelSettings(), 8, str(path))
    return torch.load(path)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.norm() > 0
        assert (found[name] - tensor).norm() / tensor.norm() < 1e-5, name


@pytest.mark.parametrize(
    ("ranks", "parallel"),
    [
        (2, {}),
        (2, {"tensor": 2}),
        (2, {"replicas": 2}),
        pytest.param(4, {"tensor": 2}, marks=pytest.mark.slow),
        pytest.param(4, {"replicas": 2, "checkpointing": True}, marks=pytest.mark.slow),
        pytest.param(2, {"compile": True}, marks=pytest.mark.slow),
    ],
)
def test_ranks_change_nothing(tmp_path, alone, ranks, parallel):
    path = tmp_path / "gradients.pt"
    values = json.dumps({"parallel": parallel, "micro_rows": 2})
    done = torchrun(ranks, "-m", "tests.support.gradients", values, str(path))
    assert done.returncode == 0, done.stdout
    assert_same(torch.load(path), alone)


@pytest.mark.parametrize("parallel", [{}, {"checkpointing": True}])
def test_neither_accumulation_nor_checkpointing_changes_anything(tmp_path, alone, parallel):
    path = tmp_path / "gradients.pt"
    compute_gradients(ParallelSettings(**parallel), 2, str(path))
    assert_same(torch.load(path), alone)


@pytest.mark.slow
def test_compiled_is_eager(tmp_path, alone):
    path = tmp_path / "gradients.pt"
    compute_gradients(ParallelSettings(compile=True), 8, str(path))
    assert_same(torch.load(path), alone)


def test_what_cannot_be_split_evenly_is_refused():
    with pytest.raises(ChuanError, match="num_key_value_heads 3 cannot be split over 2"):
        check_tensor_parallel(build_tiny_config(num_attention_heads=6, num_key_value_heads=3), 2)
    with pytest.raises(ChuanError, match="1 ranks cannot be 1 replicas of 2"):
        compute_gradients(ParallelSettings(tensor=2), 8, "never written")
