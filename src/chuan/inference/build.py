"""From a finished decoder to what runs it.

In: a decoder. Out: a `Runner`, with as much memory for keys and values as is sensible on this machine.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil

import psutil
import torch

from chuan.inference.native import NativeRunner
from chuan.inference.pages import PAGE, count_pages
from chuan.inference.runner import Runner, TorchRunner
from chuan.model.config import ModelConfig
from chuan.model.decoder import Decoder
from chuan.model.memory import estimate_cache
from chuan.quantization.kernels.bindings import load_kernels

# Room beside one full context: this many sequences of this many tokens.
SEQUENCES, SEQUENCE_TOKENS = 8, 2048


def build_runner(decoder: Decoder) -> Runner:
    """The fastest runner for what the decoder is made of."""
    weight = decoder.model.embed_tokens.weight
    kernels = load_kernels()
    if kernels is not None and weight.device.type == "cpu" and NativeRunner.takes(decoder):
        return NativeRunner(decoder, kernels, choose_page_count(decoder.config, torch.bfloat16, weight.device))
    page_count = choose_page_count(decoder.config, weight.dtype, weight.device)
    if weight.device.type == "cuda" and weight.dtype.itemsize == 2 and _compiles_for(weight.device):
        # By name: it imports Triton, which comes with torch for GPUs alone.
        gpu = importlib.import_module("chuan.inference.gpu.runner")
        if gpu.GpuRunner.takes(decoder):
            runner: Runner = gpu.GpuRunner(decoder, page_count)
            return runner
    return TorchRunner(decoder, page_count)


def _compiles_for(device: torch.device) -> bool:
    """Whether Triton can make the kernels: it wants an NVIDIA GPU, Ampere or later, and a C compiler."""
    compilers = (os.environ.get("CC"), "gcc", "clang")
    found = any(shutil.which(compiler) for compiler in compilers if compiler)
    recent = torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)
    return found and recent and importlib.util.find_spec("triton") is not None


def choose_page_count(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> int:
    """Pages for one full context and eight sequences of 2,048 tokens, in at most half of the memory that is free now.

    On a CPU a page takes memory when it is first written, and unused pages are written before old ones are reused: in
    time all of it is taken, by what was said before and may be said again.
    """
    wanted = count_pages(config.context_length)
    wanted += SEQUENCES * count_pages(min(config.context_length, SEQUENCE_TOKENS))
    page = estimate_cache(config, PAGE, dtype.itemsize)
    return max(1, min(wanted, read_free_memory(device) // 2 // page))


def read_free_memory(device: torch.device) -> int:
    """Bytes that a program could still take on the device (MPS shares the machine's)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
