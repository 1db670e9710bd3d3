"""The forecast against what torch really keeps, against published runs, and its refusals."""

import json
from pathlib import Path

import pytest
import torch
from benchmarks.published_runs import RUNS, compare
from torch.autograd.graph import saved_tensors_hooks
from typer.testing import CliRunner

from chuan.cli import app
from chuan.errors import ChuanError
from chuan.model.decoder import Decoder
from chuan.recipes import load_recipe
from chuan.training.gpus import GPUS, find_gpu
from chuan.training.loss import LanguageModelLoss, LossSettings
from chuan.training.optimizer import OptimizerSettings, build_optimizers
from chuan.training.parallel import apply_checkpointing
from chuan.training.plan import Layout, estimate_layer_activations, estimate_memory, plan
from chuan.training.recipe import PretrainRecipe

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "recipes/pretrain-baichuan-7b.toml")


def build_recipe(rows: int = 2, kind: str = "adamw", layers: int = 2) -> PretrainRecipe:
    shape = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": layers}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 40}
    values = {"output": "-", "steps": 1, "batch": {"rows": rows}, "optimizer": {"kind": kind, "learning_rate": 0.1}}
    data = {"shards": "-", "tokenizer": "-", "length": 40}
    return PretrainRecipe.model_validate(values | {"model": shape, "data": data})


def build_model(recipe: PretrainRecipe) -> LanguageModelLoss:
    return LanguageModelLoss(Decoder(recipe.model.build_config()), LossSettings())


def count_saved(model: LanguageModelLoss, rows: int, length: int) -> int:
    """Bytes that autograd keeps, weights apart."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    ids = torch.randint(0, 97, (rows, length))
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model(ids, torch.zeros_like(ids), ids)
    return sum(storage.nbytes() for address, storage in kept.items() if address not in own)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_those_that_autograd_keeps(dtype, checkpointing):
    torch.manual_seed(0)
    recipe = build_recipe()
    model = build_model(recipe).to(dtype)
    if checkpointing:
        apply_checkpointing(model)
    memory = estimate_memory(recipe, Layout(1, 1, 1, checkpointing, micro_rows=2), size=dtype.itemsize)
    head_gradient = 97 * 64 * dtype.itemsize  # in another part of the forecast
    saved = count_saved(model, rows=2, length=40) - head_gradient
    assert memory["activations"] == pytest.approx(saved, rel=0.05)  # ids and rotary angles are not forecast


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layers_activations_are_exact(dtype):
    one, two = (build_model(build_recipe(layers=layers)).to(dtype) for layers in (1, 2))
    saved = count_saved(two, 2, 40) - count_saved(one, 2, 40)
    config = two.decoder.config
    assert saved == estimate_layer_activations(config, compiled=False, size=dtype.itemsize) * 2 * 40
    assert saved > estimate_layer_activations(config, compiled=True, size=dtype.itemsize) * 2 * 40


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_states_are_those_of_the_real_optimizer(kind):
    recipe = build_recipe(kind=kind)
    model = build_model(recipe)
    optimizers = build_optimizers(
        model.named_parameters(), OptimizerSettings(kind=kind, learning_rate=0.1), torch.float32
    )
    ids = torch.randint(0, 97, (2, 40))
    model(ids, torch.zeros_like(ids), ids)[0].backward()
    states = 0
    for optimizer in optimizers:
        optimizer.step()
        for state in optimizer.state.values():
            states += sum(value.nbytes for value in state.values() if torch.is_tensor(value) and value.dim())
    weights = sum(parameter.nbytes for parameter in model.parameters())
    gradients = sum(parameter.grad.nbytes for parameter in model.parameters())
    memory = estimate_memory(recipe, Layout(1, 1, 1, False, 1))
    assert memory["weights"] == weights
    assert memory["gradients"] == gradients
    assert memory["optimizer"] == pytest.approx(states, rel=0.02)  # Muon leaves the norms to AdamW
    halves = estimate_memory(recipe, Layout(1, 3, 2, False, 1))
    assert halves["optimizer"] == memory["optimizer"] / 2


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_published_runs_lie_near(run):
    hours, mfu, published, published_mfu = compare(run)
    assert 1 / 1.5 < hours / published < 1.5
    assert hours * mfu == pytest.approx(published * published_mfu, rel=1e-6)  # one count of operations


def test_the_best_layout_is_one_that_the_recipe_takes():
    recipe = load_recipe(RECIPE, PretrainRecipe)
    forecasts = plan(recipe, 1000, GPUS["a800-80gb"])
    rates = [item.tokens_per_second for item in forecasts]
    assert rates == sorted(rates, reverse=True)
    for item in forecasts:
        layout = item.layout
        assert layout.tensor * layout.replicas * layout.shard == 1000
        assert recipe.batch.rows % (layout.replicas * layout.shard * layout.micro_rows) == 0
        assert item.total_memory < 80e9
        assert item.mfu <= 0.5
    assert forecasts[0].layout.tensor == 1


def test_checkpointing_trades_time_for_memory():
    recipe = build_recipe(rows=8)
    forecasts = {item.layout: item for item in plan(recipe, 1, GPUS["h200"])}
    plain, again = (next(f for layout, f in forecasts.items() if layout.checkpointing is on) for on in (False, True))
    assert again.memory["activations"] < plain.memory["activations"]
    assert again.seconds["computing"] > plain.seconds["computing"]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["plan", RECIPE, *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_json_holds_what_the_table_shows():
    values = json.loads(run("--gpus", "8", "--gpu", "H100-SXM", "--tokens", "1.2e12", "--price", "2", "--json"))
    best = values["layouts"][0]
    assert best["cost"] == pytest.approx(2 * best["gpu_hours"])
    assert best["days"] == pytest.approx(1.2e12 / best["tokens_per_day"])
    assert best["total_memory"] == pytest.approx(sum(best["memory"].values()))
    text = run("--gpus", "8", "--gpu", "h100-sxm")
    assert best["set"] in text
    assert f"{best['gpu_hours']:,.0f}" in text
    overrides = best["set"].replace("--set ", "").split()
    chosen = load_recipe(RECIPE, PretrainRecipe, overrides)
    assert chosen.parallel.replicas == best["layout"]["replicas"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpus", "8", "--gpu", "b52"], "there are a100-80gb"),
        (["--gpus", "7", "--gpu", "h200"], "change --gpus"),
        (["--gpus", "1", "--gpu", "a100-80gb"], "take more GPUs"),
        (["--gpus", "0", "--gpu", "h200"], "--gpus must be above 0"),
        (["--gpus", "8", "--gpu", "h200", "--mfu", "58.3"], "at most 1"),
        (["--gpus", "8", "--gpu", "h200", "--tokens", "nan"], "--tokens must be above 0"),
        (["--gpus", "8", "--gpu", "h200", "--set", "dtype=float32"], "dtype=bfloat16"),
    ],
)
def test_what_cannot_be_is_one_line(arguments, words):
    with pytest.raises(ChuanError) as error:
        run(*arguments)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_names_of_gpus_are_taken_in_any_case():
    assert find_gpu("A800-80G") is GPUS["a800-80gb"]
