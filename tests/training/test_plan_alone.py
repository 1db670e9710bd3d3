"""What FSDP does where one rank is alone, in bfloat16, against the plan's count of it: the highest point of the memory,
and the bytes that are copied. The plan is of GPUs: a CPU makes its copies once a step, which is measured last."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import chuan.training.loss as loss_module
import chuan.training.parallel as parallel_module
from chuan.training.loss import LanguageModelLoss, LossSettings
from chuan.training.optimizer import build_optimizers
from chuan.training.parallel import ParallelSettings, Ranks, apply_parallel, join_ranks, prepare_part
from chuan.training.plan import Layout, count_copied, estimate_memory
from chuan.training.pretrain import build_decoder
from chuan.training.recipe import PretrainRecipe

LENGTH, LOGITS = 128, 1 << 18


def build_recipe(micro_rows: int) -> PretrainRecipe:
    shape = {"vocab_size": 2048, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4}
    shape |= {"num_attention_heads": 4, "max_position_embeddings": LENGTH}
    values = {"output": "-", "steps": 1, "optimizer": {"learning_rate": 1e-4}, "model": shape}
    data = {"shards": "-", "tokenizer": "-", "length": LENGTH}
    return PretrainRecipe.model_validate(values | {"data": data, "batch": {"rows": 1, "micro_rows": micro_rows}})


def list_tensors(tree: Any) -> list[Tensor]:
    leaves = [leaf.to_local() if isinstance(leaf, DTensor) else leaf for leaf in tree_leaves(tree)]
    return [leaf for leaf in leaves if type(leaf) is Tensor]


class Recorder(TorchDispatchMode):
    """The most bytes of all storages that it has seen and that are alive; the bytes that FSDP's copies move."""

    def __init__(self) -> None:
        super().__init__()
        self.highest = self.copied = 0
        self._storages: dict[int, weakref.ReferenceType[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = list_tensors((args, kwargs or {}))
        result = function(*args, **(kwargs or {}))
        made = list_tensors(result)
        for tensor in given + made:
            storage = tensor.untyped_storage()
            self._storages[storage._cdata] = weakref.ref(storage)
        alive = [storage() for storage in self._storages.values()]
        self.highest = max(self.highest, sum(storage.nbytes() for storage in alive if storage is not None))
        self.copied += self._count(function.name(), given, made)
        return result

    @staticmethod
    def _count(name: str, given: list[Tensor], made: list[Tensor]) -> int:
        floats = [tensor for tensor in given if tensor.dtype in (torch.float32, torch.bfloat16)]
        if name == "fsdp::chunk_cat":
            return sum(tensor.nbytes for tensor in floats)
        if name == "aten::_to_copy" and floats and floats[0].dim() == 1:
            return floats[0].nbytes + made[0].nbytes
        if name == "aten::copy_" and floats and floats[0].dim() == 1:
            return sum(tensor.nbytes for tensor in floats)
        if name == "aten::add_.Tensor" and [tensor.dtype for tensor in floats] == 2 * [torch.float32]:
            return 2 * floats[0].nbytes + floats[1].nbytes if floats[0].dim() else 0
        return 0


@pytest.fixture
def alone():
    with join_ranks(ParallelSettings(), "cpu") as ranks:
        yield ranks


@pytest.fixture
def as_on_gpu(monkeypatch):
    monkeypatch.setattr(parallel_module, "_keeps_copies", lambda model, mesh: False)


def build_model(recipe: PretrainRecipe, ranks: Ranks, checkpointing: bool = False) -> LanguageModelLoss:
    torch.manual_seed(0)
    model = LanguageModelLoss(build_decoder(recipe.model.build_config()), LossSettings())
    apply_parallel(model, ranks, ParallelSettings(checkpointing=checkpointing), torch.bfloat16)
    return model


def run_parts(model: LanguageModelLoss, ranks: Ranks, rows: int, parts: int) -> None:
    for part in range(parts):
        prepare_part(model, ranks, last=part + 1 == parts)
        ids = torch.randint(0, 2048, (rows, LENGTH))
        model(ids, torch.zeros_like(ids), ids)[0].backward()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("micro_rows", [1, 4, 16])
def test_highest_point_of_a_step(monkeypatch, alone, as_on_gpu, micro_rows, checkpointing):
    monkeypatch.setattr(loss_module, "CPU_LOGITS", LOGITS)
    recipe = build_recipe(micro_rows)
    model = build_model(recipe, alone, checkpointing)
    [optimizer] = build_optimizers(model.named_parameters(), recipe.optimizer, torch.float32)
    with Recorder() as recorder:
        for _ in range(2):
            run_parts(model, alone, micro_rows, parts=2)
            optimizer.step()
            optimizer.zero_grad()
    memory = estimate_memory(recipe, Layout(1, 1, 1, checkpointing, micro_rows), logits=LOGITS)
    assert recorder.highest == pytest.approx(sum(memory.values()), rel=0.04)


@pytest.mark.parametrize("parts", [1, 3])
def test_bytes_that_are_copied(alone, as_on_gpu, parts):
    recipe = build_recipe(2)
    model = build_model(recipe, alone)
    with Recorder() as recorder:
        run_parts(model, alone, 2, parts)
    assert recorder.copied == count_copied(recipe.model.build_config(), 1, parts)


def test_a_cpu_makes_its_copies_once_a_step_and_learns_the_same(monkeypatch, alone):
    def learn() -> tuple[int, list[Tensor]]:
        recipe = build_recipe(2)
        model = build_model(recipe, alone)
        [optimizer] = build_optimizers(model.named_parameters(), recipe.optimizer, torch.float32)
        with Recorder() as recorder:
            run_parts(model, alone, 2, parts=3)
        for _ in range(2):
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():  # a measurement leaves copies behind, which must neither be saved nor trained on
                model(*torch.zeros(3, 1, LENGTH, dtype=torch.long))
            assert {weight.dtype for weight in model.state_dict().values()} == {torch.float32}
            run_parts(model, alone, 2, parts=3)
        optimizer.step()
        return recorder.copied, [parameter.to_local() for parameter in model.parameters()]

    copied, weights = learn()
    monkeypatch.setattr(parallel_module, "_keeps_copies", lambda model, mesh: False)
    copied_more, expected = learn()
    assert copied < 0.5 * copied_more
    for weight, other in zip(weights, expected, strict=True):
        assert torch.equal(weight, other)


def test_a_frozen_base_is_not_there_twice(alone):
    model = LanguageModelLoss(build_decoder(build_recipe(1).model.build_config()), LossSettings())
    model.requires_grad_(False)
    model.decoder.lm_head.requires_grad_(True)
    apply_parallel(model, alone, ParallelSettings(), torch.bfloat16)
    run_parts(model, alone, 1, parts=1)
    ids = torch.zeros(1, LENGTH, dtype=torch.long)
    model(ids, ids, ids)
    assert all(isinstance(parameter, DTensor) for parameter in model.decoder.model.layers.parameters())
