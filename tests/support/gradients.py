"""One backward pass on the ranks that torchrun starts; the first writes the whole gradients. Arguments: JSON, file."""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from chuan.training.loss import LanguageModelLoss, LossSettings
from chuan.training.parallel import ParallelSettings, apply_parallel, full_name, join_ranks, prepare_part
from tests.support.tiny import build_tiny_config, build_tiny_decoder


def compute_gradients(settings: ParallelSettings, micro_rows: int, path: str) -> None:
    """The gradients of eight rows of packed documents, with a z-loss and a normalized head."""
    with join_ranks(settings, "cpu") as ranks:
        config = build_tiny_config(vocab_size=308, num_key_value_heads=2)
        model = LanguageModelLoss(build_tiny_decoder(config), LossSettings(max_z=1e-3, normalized_head=True))
        apply_parallel(model, ranks, settings, torch.float32)
        torch.manual_seed(5)
        tokens, targets = torch.randint(0, 308, (2, 8, 33))
        documents = (torch.arange(33) // 11).expand(8, 33)
        targets[:4, :20] = -100  # ranks and parts of a batch do not learn from equally many tokens
        count = int((targets != -100).sum())
        share = 8 // ranks.data_size
        losses = torch.zeros(())
        starts = range(ranks.data_rank * share, (ranks.data_rank + 1) * share, micro_rows)
        for first in starts:
            rows = slice(first, first + micro_rows)
            prepare_part(model, ranks, last=first == starts[-1])
            total, _ = model(tokens[rows], documents[rows], targets[rows])
            (total * ranks.data_size / count).backward()
            losses += total.detach() / count
        dist.all_reduce(losses)
        grads = {
            full_name(name): parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
            for name, parameter in model.named_parameters()
        }
        if ranks.is_first:
            torch.save({"loss": losses / settings.tensor} | grads, path)


if __name__ == "__main__":
    values = json.loads(sys.argv[1])
    compute_gradients(ParallelSettings(**values["parallel"]), values["micro_rows"], sys.argv[2])
