"""Kernels that begin while the one before them ends (programmatic dependent launch, Hopper and later).

A step is some hundred short kernels one after the other: what each does before it needs the results of the last one,
such as reading weights, costs nothing that way. Every kernel waits, so that each also comes after all others.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


def on_device(device: torch.device) -> AbstractContextManager[None]:
    """Triton launches on the current device; a processor's (Triton's interpreter) needs no choosing."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def chain_options(device: torch.device) -> dict[str, bool]:
    """What every launch says: whether the device can launch so, to the kernel and to Triton."""
    chained = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"CHAINED": chained, "launch_pdl": chained}


@triton.jit
def wait_for_previous() -> None:
    """Before, nothing may be read that the previous kernel wrote, and nothing written.

    Only now may the next one begin, so that when a kernel begins, all but the previous one are finished.
    """
    gdc_wait()
    gdc_launch_dependents()
