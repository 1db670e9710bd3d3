"""A finished model spread over ranks, from outside and in a fixed order.

In: a plain decoder with its loss, and how many ranks do what. Out: the same module, changed in place. Tensor parallel,
then activation checkpointing, then `torch.compile`, then sharding (FSDP2).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Self, cast

import torch
import torch.distributed as dist
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.checkpoint import checkpoint

from chuan.errors import ChuanError
from chuan.model.config import ModelConfig
from chuan.recipes import Settings
from chuan.training.loss import LanguageModelLoss


class ParallelSettings(Settings):
    """How the ranks that `torchrun` starts are used.

    `tensor` of them split each matrix, `replicas` groups hold a copy of the weights each (HSDP, for several nodes), and
    the rest shard weights, gradients and optimizer (FSDP).
    """

    tensor: int = Field(default=1, ge=1)
    replicas: int = Field(default=1, ge=1)
    checkpointing: bool = False  # activations of a layer are computed again on the way back
    compile: bool = False

    @model_validator(mode="after")
    def _works(self) -> Self:
        # torch 2.13: the gradients of a compiled, split layer come out wrong, without a word (docs/log.md).
        if self.tensor > 1 and self.compile:
            raise ValueError("compile does not work with tensor above 1; leave one of them out")
        return self


@dataclass(frozen=True)
class Ranks:
    """The ranks of this run, seen from one of them."""

    device: torch.device
    mesh: DeviceMesh  # (replica, shard, tensor)
    state_group: dist.ProcessGroup  # for checkpoints that are written while training goes on

    @property
    def is_first(self) -> bool:
        return dist.get_rank() == 0

    @property
    def data_size(self) -> int:
        """How many ranks see different rows."""
        return self.mesh["replica"].size() * self.mesh["shard"].size()

    @property
    def data_rank(self) -> int:
        return self.mesh["replica"].get_local_rank() * self.mesh["shard"].size() + self.mesh["shard"].get_local_rank()


@contextmanager
def join_ranks(settings: ParallelSettings, device: str) -> Iterator[Ranks]:
    """Joins the ranks that `torchrun` started, or is the only one. `device` is "cpu" or "cuda"."""
    alone = "RANK" not in os.environ
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    local = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if device == "cuda" else torch.device(device)
    if local.type == "cuda":
        torch.cuda.set_device(local)
    store, rank, size = (dist.HashStore(), 0, 1) if alone else next(rendezvous("env://"))
    # torchrun starts ranks that died again with the same store, where the dead ones' addresses still stand.
    attempt = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=attempt, rank=rank, world_size=size, timeout=timedelta(minutes=30))
    try:
        world = dist.get_world_size()
        if world % (settings.tensor * settings.replicas):
            raise ChuanError(
                f"{world} ranks cannot be {settings.replicas} replicas of {settings.tensor} tensor-parallel ranks; "
                "change parallel.replicas, parallel.tensor or the number of processes"
            )
        shape = (settings.replicas, world // settings.tensor // settings.replicas, settings.tensor)
        mesh = init_device_mesh(device, shape, mesh_dim_names=("replica", "shard", "tensor"))
        yield Ranks(local, mesh, dist.new_group(backend="gloo"))
    finally:
        dist.destroy_process_group()


def apply_parallel(
    model: LanguageModelLoss, ranks: Ranks, settings: ParallelSettings, compute_dtype: torch.dtype
) -> None:
    """Everything, in order; `model` is on its device, its trained weights in float32."""
    if settings.tensor > 1:
        apply_tensor_parallel(model, ranks.mesh["tensor"])
    if settings.checkpointing:
        apply_checkpointing(model)
    if settings.compile:
        apply_compile(model, compute_dtype)
    # Alone and in the weights' own type there is nothing to shard or copy; FSDP would cost five per cent all the same.
    if ranks.mesh.size() > 1 or compute_dtype != torch.float32:
        apply_sharding(model, ranks.mesh, compute_dtype)


def apply_tensor_parallel(model: LanguageModelLoss, mesh: DeviceMesh) -> None:
    """Splits each layer's matrices over the ranks of `mesh`, and the vocabulary of embedding and head."""
    decoder = model.decoder
    check_tensor_parallel(decoder.config, mesh.size())
    plan = {
        **{f"self_attn.{name}": ColwiseParallel() for name in ("q_proj", "k_proj", "v_proj")},
        **{f"mlp.{name}": ColwiseParallel() for name in ("gate_proj", "up_proj")},
        "self_attn.o_proj": RowwiseParallel(),
        "mlp.down_proj": RowwiseParallel(),
    }
    for layer in decoder.model.layers:
        parallelize_module(layer, mesh, plan)
    embedding = RowwiseParallel(input_layouts=Replicate())
    parallelize_module(decoder, mesh, {"model.embed_tokens": embedding, "lm_head": ColwiseParallel()})
    decoder.tie_head()
    model.vocabulary_group = mesh.get_group()


def check_tensor_parallel(config: ModelConfig, size: int) -> None:
    """Raises ChuanError where a dimension cannot be split evenly."""
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size"):
        if getattr(config, name) % size:
            raise ChuanError(
                f"{name} {getattr(config, name)} cannot be split over {size} tensor-parallel ranks; change "
                "parallel.tensor"
            )


def apply_checkpointing(model: LanguageModelLoss) -> None:
    """Keeps only each layer's input for the way back (Chen et al. 2016, https://arxiv.org/abs/1604.06174)."""
    for layer in model.decoder.model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def apply_compile(model: LanguageModelLoss, compute_dtype: torch.dtype) -> None:
    """Compiles each layer, which share what is compiled, and what the loss does to logits where they change type."""
    # Else every layer is compiled anew for the number that it carries.
    torch._dynamo.config.allow_unspec_int_on_nn_module = True
    for layer in model.decoder.model.layers:
        layer.forward = torch.compile(layer.forward)
    if compute_dtype != torch.float32:  # in float32 torch's own operations are as fast (docs/log.md)
        model.score = torch.compile(model.score)


def apply_sharding(model: LanguageModelLoss, mesh: DeviceMesh, compute_dtype: torch.dtype) -> None:
    """FSDP2 (https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html): a layer at a time is whole.

    Where nothing is sharded all of them may be, until a step's last part (`prepare_part`).

    Weights and their gradients stay in float32, copies for computing are in `compute_dtype`. With several replicas this
    is HSDP.
    """
    data = mesh["replica", "shard"] if mesh["replica"].size() > 1 else mesh["shard"]
    # The angles of the rotary embedding stay in float32.
    policy = MixedPrecisionPolicy(compute_dtype, torch.float32, cast_forward_inputs=False)
    reshard = not _keeps_copies(model, mesh)
    for layer in model.decoder.model.layers:
        fully_shard(layer, mesh=data, mp_policy=policy, reshard_after_forward=reshard)
    fully_shard(model, mesh=data, mp_policy=policy)


def prepare_part(model: LanguageModelLoss, ranks: Ranks, last: bool) -> None:
    """Called before each part of a batch. Where a step keeps its copies, gradients are reduced after the last alone."""
    if isinstance(model, FSDPModule) and _keeps_copies(model, ranks.mesh):
        model.set_reshard_after_backward(last)
        model.set_requires_gradient_sync(last)


def _keeps_copies(model: LanguageModelLoss, mesh: DeviceMesh) -> bool:
    """Whether copies of all weights stay from a step's first part to its last: on a CPU, where nothing is sharded.

    There memory is cheaper than copying, which is a tenth of a step; but not if a frozen base would be there twice.
    """
    alone = mesh.device_type == "cpu" and mesh["shard"].size() == 1
    return alone and all(parameter.requires_grad for parameter in model.parameters())


def gather_weights(model: LanguageModelLoss) -> dict[str, Tensor]:
    """Every weight that is trained, whole, on the first rank's CPU; the others get nothing. Called by all ranks."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    weights = cast("dict[str, Tensor]", get_model_state_dict(model, options=options))
    return {full_name(name): tensor for name, tensor in weights.items()}


def full_name(name: str) -> str:
    """A parameter's name in the decoder, and so in a checkpoint."""
    return name.removeprefix("decoder.")


def count_trained(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
