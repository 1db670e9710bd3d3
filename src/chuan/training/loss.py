"""The loss of a language model, without ever holding the logits of all tokens.

In: a decoder, and rows. Out: sums over target tokens; whoever knows how many there are in the whole step divides.
Letters: N positions, W width, V vocabulary (of this rank, where it is split).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from chuan.model.decoder import Decoder
from chuan.recipes import Settings
from chuan.training.packed import build_packed_attention, count_positions
from chuan.training.rows import IGNORED

# Logits that exist at a time: on a CPU about what its caches hold, on a GPU enough to keep it busy.
CPU_LOGITS, GPU_LOGITS = 1 << 23, 1 << 27
_TILE = 128  # rows that a GPU's products take at a time


Score = Callable[
    [Tensor, Tensor, Tensor, float, "dist.ProcessGroup | None", bool], tuple[Tensor, Tensor, Tensor | None]
]


class LossSettings(Settings):
    """What is minimised.

    `max_z` is the weight of the squared largest logit, and `normalized_head` scales the head's rows to length 1: both
    from the Baichuan 2 report (https://arxiv.org/abs/2309.10305), which trains with 2e-4 and a normalized head.
    """

    max_z: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    normalized_head: bool = False


class LanguageModelLoss(nn.Module):
    """A decoder with its loss on top: one module, so that sharding sees the head used inside a forward pass."""

    def __init__(self, decoder: Decoder, settings: LossSettings) -> None:
        super().__init__()
        self.decoder = decoder
        self.settings = settings
        self.vocabulary_group: dist.ProcessGroup | None = None  # set where tensor parallelism splits the head
        self.score: Score = score_slice  # apply_parallel may compile it

    def forward(
        self, tokens: Tensor, documents: Tensor, targets: Tensor | None, position: int = -1
    ) -> tuple[Tensor, Tensor]:
        """(B, T) each -> the sum that is minimised, and the sum of -ln p of the targets, both float32 scalars.

        Without targets: the largest logit of each row at `position`, (B,), and its id, (B,).
        """
        x = self.decoder.hidden_states(tokens, build_packed_attention(documents), positions=count_positions(documents))
        weight = self.decoder.lm_head.weight
        if isinstance(weight, DTensor):
            weight = weight.to_local()
        if self.settings.normalized_head:
            weight = F.normalize(weight.float(), dim=-1).to(weight.dtype)
        if targets is None:
            return self._choose(F.linear(self.decoder.model.norm(x[:, position]), weight).float())
        learned = (targets != IGNORED).flatten().nonzero().squeeze(1)
        hidden = self.decoder.model.norm(x).flatten(0, 1)[learned]
        return cross_entropy(
            hidden, weight, targets.flatten()[learned], self.settings.max_z, self.vocabulary_group, self.score
        )

    def _choose(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(B, V) -> the largest logit and its id, over all ranks of a split vocabulary."""
        largest, where = logits.max(dim=-1)
        if self.vocabulary_group is not None:
            size = dist.get_world_size(self.vocabulary_group)
            values = [torch.empty_like(largest) for _ in range(size)]
            ids = [torch.empty_like(where) for _ in range(size)]
            dist.all_gather(values, largest, self.vocabulary_group)
            dist.all_gather(ids, where + dist.get_rank(self.vocabulary_group) * logits.shape[1], self.vocabulary_group)
            largest, best = torch.stack(values).max(dim=0)
            where = torch.stack(ids).gather(0, best[None])[0]
        return largest, where


def count_slice(vocabulary: float, logits: int) -> int:
    """Positions whose logits over `vocabulary` ids exist at a time."""
    rows = max(1, int(logits // vocabulary))
    return rows - rows % _TILE if rows > _TILE else rows


def score_slice(
    rows: Tensor, weight: Tensor, targets: Tensor, max_z: float, group: dist.ProcessGroup | None, wants_grad: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(S, W) by (V, W), targets (S,) -> the sums over S of -ln p and of what is minimised; where it is wanted, the
    latter's gradient by the logits, (S, V) in the type of `rows`.
    """
    vocabulary = weight.shape[0]
    logits = F.linear(rows, weight).float()
    local = targets.long() - (0 if group is None else dist.get_rank(group) * vocabulary)
    mine = (local >= 0) & (local < vocabulary)
    local = local.clamp(0, vocabulary - 1)[:, None]
    largest = own_largest = logits.amax(dim=-1, keepdim=True)
    where = logits.argmax(dim=-1, keepdim=True) if max_z else None  # costs as much as the rest together
    if group is not None:
        largest = largest.clone()
        dist.all_reduce(largest, dist.ReduceOp.MAX, group)
    chosen = torch.where(mine[:, None], logits.gather(1, local), 0)
    logits = logits.sub_(largest).exp_()
    mass = logits.sum(dim=-1, keepdim=True)
    if group is not None:
        dist.all_reduce(mass, group=group)
        dist.all_reduce(chosen, group=group)
    nll = (largest + mass.log() - chosen).sum()
    total = nll + max_z * largest.square().sum()
    if not wants_grad:
        return nll, total, None
    grad = logits.div_(mass)  # softmax; now minus one at the target
    grad.scatter_add_(1, local, -mine[:, None].to(grad.dtype))
    if where is not None:
        grad.scatter_add_(1, where, torch.where(own_largest == largest, 2 * max_z * largest, 0))
    return nll, total, grad.to(rows.dtype)


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    max_z: float = 0.0,
    group: dist.ProcessGroup | None = None,
    score: Score = score_slice,
) -> tuple[Tensor, Tensor]:
    """(N, W) by (V, W), targets (N,) -> the sums over N of (-ln p + max_z * largest logit squared), and of -ln p.

    With `group`, `weight` is this rank's share of the vocabulary's rows and `targets` are ids of the whole. Gradients
    are computed on the way forward, a slice of N at a time, so that nothing of the size N x V is kept. `score` is
    `score_slice`, or that compiled.
    """
    return _CrossEntropy.apply(hidden, weight, targets, max_z, group, score)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        max_z: float,
        group: dist.ProcessGroup | None,
        score: Score,
    ) -> tuple[Tensor, Tensor]:
        step = count_slice(weight.shape[0], CPU_LOGITS if hidden.device.type == "cpu" else GPU_LOGITS)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if wants_weight else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        nll = torch.zeros_like(total)
        for start in range(0, len(targets), step):
            rows = hidden[start : start + step]
            slice_nll, slice_total, grad = score(
                rows, weight, targets[start : start + step], max_z, group, wants_hidden or wants_weight
            )
            nll += slice_nll
            total += slice_total
            if grad is None:
                continue
            if grad_hidden is not None:
                slice_grad = grad @ weight
                if group is not None:
                    dist.all_reduce(slice_grad, group=group)
                grad_hidden[start : start + step] = slice_grad
            if grad_weight is not None:
                if grad.dtype == torch.float32:
                    grad_weight.addmm_(grad.T, rows)
                else:
                    grad_weight += grad.T @ rows
            del grad  # or the next slice would be made beside this one
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        ctx.mark_non_differentiable(nll)
        return total, nll

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * grad_total.to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight * grad_total.to(grad_weight.dtype),
            None,
            None,
            None,
            None,
        )
