"""Products in 8-bit floats, emulated: near the exact ones, and learned through."""

import pytest
import torch

from chuan.errors import ChuanError
from chuan.training.float8 import apply_float8
from chuan.training.loss import LanguageModelLoss, LossSettings
from chuan.training.pretrain import pretrain
from chuan.training.watch import read_log
from tests.support.tiny import build_tiny_config, build_tiny_decoder
from tests.support.tiny_run import read_tiny_recipe, write_tiny_recipe

CPU = torch.device("cpu")


def compute(float8: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model = LanguageModelLoss(build_tiny_decoder(build_tiny_config()), LossSettings())
    if float8:
        apply_float8(model, CPU)
    torch.manual_seed(1)
    tokens, targets = torch.randint(0, 307, (2, 4, 24))
    total, _ = model(tokens, torch.zeros_like(tokens), targets)
    total.backward()
    return total.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def test_loss_and_gradients_are_near_the_exact_ones_and_not_the_same():
    (loss, gradients), (exact_loss, exact) = compute(True), compute(False)
    assert 0 < abs(float(loss / exact_loss) - 1) < 0.02
    assert not any(torch.equal(gradients[name], gradient) for name, gradient in exact.items())
    one, other = (torch.cat([values[name].flatten() for name in exact]) for values in (gradients, exact))
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.9


def test_a_run_learns_and_goes_on(tmp_path):
    path = write_tiny_recipe(tmp_path)
    settings = ("dtype=float8", "steps=30", "state.every=15")
    assert pretrain(read_tiny_recipe(path, *settings), stop_after=15) is None
    pretrain(read_tiny_recipe(path, *settings))
    losses = [entry["loss"] for entry in read_log(tmp_path / "run") if "loss" in entry]
    assert len(losses) == 30
    assert losses[-1] < 0.9 * losses[0]
    with pytest.raises(ChuanError, match="dtype"):
        pretrain(read_tiny_recipe(path, "dtype=bfloat16", *settings[1:]))


def test_widths_that_do_not_suit_are_refused():
    config = build_tiny_config(intermediate_size=72)
    with pytest.raises(ChuanError, match="multiples of 16, and 0.mlp.gate_proj is 72 x 48"):
        apply_float8(LanguageModelLoss(build_tiny_decoder(config), LossSettings()), CPU)


def test_tensor_parallel_is_refused(tmp_path):
    with pytest.raises(ChuanError, match="float8 does not work with parallel.tensor"):
        read_tiny_recipe(write_tiny_recipe(tmp_path), "dtype=float8", "parallel.tensor=2")
