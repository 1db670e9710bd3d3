"""Kernels that begin while the one before them ends (programmatic dependent launch, Hopper and later).

A step is some hundred short kernels in a row: what each does before it needs the results of the one before, such as
reading weights, costs nothing that way. Every kernel of the row waits, so that each also comes after all before it.
"""

from __future__ import annotations

import torch
import triton
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


def is_chained(device: torch.device) -> bool:
    """Whether kernels on a device can be launched so."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)


@triton.jit
def wait_for_previous() -> None:
    """Before, nothing may be read that the previous kernel wrote, and nothing written.

    The next one is let begin only now, so that when a kernel begins, all but the previous one are finished.
    """
    gdc_wait()
    gdc_launch_dependents()
