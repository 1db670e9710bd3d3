"""GPU types, by their data sheets.

In: a name. Out: rates and sizes. Knows no model. NVLink counts both directions on the sheets; here it is one. How nodes
are joined is no matter of the GPU: one adapter a GPU is assumed, of 200 Gbit/s beside Ampere and 400 beside Hopper, as
in NVIDIA's own DGX machines.
"""

from __future__ import annotations

from dataclasses import dataclass

from chuan.errors import ChuanError


@dataclass(frozen=True)
class Gpu:
    """Rates a second, sizes in bytes."""

    peak: float  # bfloat16 operations with dense matrices
    memory: float
    memory_rate: float
    link: float  # to GPUs of the same node, one direction
    network: float  # to other nodes, one direction


GPUS = {
    # https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf
    "a100-80gb": Gpu(312e12, 80e9, 2.039e12, 300e9, 25e9),
    # An A100 with NVLink of 400 GB/s: https://aiwiki.ai/wiki/nvidia_a800
    "a800-80gb": Gpu(312e12, 80e9, 2.039e12, 200e9, 25e9),
    # Rates without sparsity: https://glennklockwood.com/garden/processors/h100, after NVIDIA's white paper
    "h100-sxm": Gpu(989.4e12, 80e9, 3.35e12, 450e9, 50e9),
    # An H100 with NVLink of 400 GB/s: https://aiwiki.ai/wiki/nvidia_h800
    "h800": Gpu(989.4e12, 80e9, 3.35e12, 200e9, 50e9),
    # An H100 with more memory: https://aiwiki.ai/wiki/nvidia_h200
    "h200": Gpu(989.4e12, 141e9, 4.8e12, 450e9, 50e9),
}


def find_gpu(name: str) -> Gpu:
    """By name, in any case; a trailing "b" of its memory may be left out. Raises ChuanError for one not known."""
    wanted = name.lower()
    for known, gpu in GPUS.items():
        if wanted in (known, known.removesuffix("b")):
            return gpu
    raise ChuanError(f"--gpu {name} is not known; there are {', '.join(GPUS)}")
