"""Who moves the weights, and how fast.

In: named parameters, settings, a step. Out: optimizers of torch, a learning rate. Knows no model and no data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Muon, Optimizer

from chuan.recipes import Settings


class OptimizerSettings(Settings):
    """AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101), or Muon for the layers' matrices and AdamW
    for the rest (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

    Matrices decay, vectors do not. Muon's updates are scaled to AdamW's size (Liu et al. 2025,
    https://arxiv.org/abs/2502.16982, section 2.2), so that both take one learning rate.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    clip: float = Field(default=1.0, gt=0, allow_inf_nan=False)  # the largest norm of the whole gradient


class ScheduleSettings(Settings):
    """The learning rate over time, as shares of `learning_rate`.

    A linear warmup, then: `cosine` down to `final` at the last step; `constant`; or `wsd`, constant with a linear
    descent to `final` over the last `decay` share of the steps (Hu et al. 2024, https://arxiv.org/abs/2404.06395,
    section 4).
    """

    kind: Literal["cosine", "constant", "wsd"] = "cosine"
    warmup: int = Field(default=0, ge=0)  # steps
    final: float = Field(default=0.1, ge=0, le=1)
    decay: float = Field(default=0.2, gt=0, le=1)


def scale_of(step: int, steps: int, settings: ScheduleSettings) -> float:
    """The share of the learning rate at `step` (from 0) of `steps`: a pure function, so that nothing is to be saved."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    if settings.kind == "constant":
        return 1.0
    if settings.kind == "cosine":
        done = (step - settings.warmup) / max(1, steps - 1 - settings.warmup)
        return settings.final + (1 - settings.final) * (1 + math.cos(math.pi * min(done, 1.0))) / 2
    first = steps - max(1, round(settings.decay * steps))
    done = (step + 1 - first) / (steps - first)
    return 1.0 - (1 - settings.final) * min(max(done, 0.0), 1.0)


class QuickMuon(Muon):
    """torch's Muon, orthogonalising in the type that the processor computes fast.

    torch's own does it in bfloat16 always, which takes minutes a step on a CPU without instructions for it. In bfloat16
    the two are the same, with Nesterov's momentum and "match_rms_adamw", which are all that this class knows.
    """

    def __init__(self, parameters: list[nn.Parameter], settings: OptimizerSettings, dtype: torch.dtype) -> None:
        super().__init__(parameters, settings.learning_rate, settings.weight_decay, adjust_lr_fn="match_rms_adamw")
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                average = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(average, group["momentum"])  # Nesterov's look ahead
                update = orthogonalize(update, self.dtype, group["ns_coefficients"], group["ns_steps"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-0.2 * math.sqrt(max(parameter.shape)) * group["lr"])


def orthogonalize(
    matrix: Tensor, dtype: torch.dtype, coefficients: tuple[float, float, float], iterations: int
) -> Tensor:
    """Draws all singular values of a matrix near to 1 by Newton and Schulz's iteration, a quintic (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon/); computed and returned in `dtype`, in the matrix's shape.
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.mT if tall else matrix).to(dtype)  # the smaller of the two products with itself
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def build_optimizers(
    parameters: Iterable[tuple[str, nn.Parameter]], settings: OptimizerSettings, dtype: torch.dtype
) -> list[Optimizer]:
    """AdamW and, where asked for, Muon over the parameters that are trained; `dtype` is the type of products."""
    adamw: dict[tuple[DeviceMesh | None, bool], list[nn.Parameter]] = {}
    muon: list[nn.Parameter] = []
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        if settings.kind == "muon" and parameter.dim() == 2 and ".layers." in name:
            muon.append(parameter)
            continue
        # A fused update takes tensors of one mesh alone; tensor parallelism makes two.
        mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
        adamw.setdefault((mesh, parameter.dim() > 1), []).append(parameter)
    groups = [
        {"params": members, "weight_decay": settings.weight_decay if decays else 0.0}
        for (_, decays), members in adamw.items()
    ]
    optimizers: list[Optimizer] = []
    if groups:
        optimizers.append(AdamW(groups, settings.learning_rate, settings.betas, settings.eps, fused=True))
    if muon:
        optimizers.append(QuickMuon(muon, settings, dtype))
    return optimizers


def set_learning_rate(optimizers: Iterable[Optimizer], value: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = value


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> float:
    """Scales all gradients so that their common norm is at most `limit`; returns the norm that they had.

    Called by all ranks together. Each holds its shards; what several ranks hold counts once. (torch's own function
    wants all of them on one mesh, which tensor parallelism does not give.)
    """
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    world = dist.get_world_size()
    # A CPU sums one number after the other, which float32 is too small for; a GPU sums many in a tree, and is slow in
    # float64.
    exact = torch.float32 if _local(grads[0]).is_cuda else torch.float64
    norms = torch.stack(torch._foreach_norm([_local(grad) for grad in grads], dtype=exact)).double()
    shares = torch.tensor([_count_shards(grad) / world for grad in grads], dtype=torch.float64)
    squares = (norms.square() * shares.to(norms.device)).sum()
    dist.all_reduce(squares)
    norm = float(squares.sqrt())
    if norm > limit:
        torch._foreach_mul_([_local(grad) for grad in grads], limit / norm)
    return norm


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _count_shards(tensor: Tensor) -> int:
    """Into how many different parts the ranks split a tensor."""
    if not isinstance(tensor, DTensor):
        return 1
    sizes = zip(tensor.placements, tensor.device_mesh.shape, strict=True)
    return math.prod(size for placement, size in sizes if not placement.is_replicate())
