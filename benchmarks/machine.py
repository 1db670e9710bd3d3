"""Which machine a figure came from: printed above every table."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import torch


def describe_machine() -> str:
    """Processor, the instructions that matter, cores, memory, versions; one line."""
    capabilities = torch.cpu.get_capabilities()
    names = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_bf16")
    features = [name for name in names if capabilities.get(name)]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers")]
    processor = capabilities.get("cpu_name") or platform.processor() or platform.machine()
    parts = [str(processor), " ".join(features), f"{os.cpu_count()} cores", f"{memory:.0f} GB", *versions]
    return ", ".join([*parts, f"Python {platform.python_version()}"])


def read_memory(process_id: int) -> tuple[int, int]:
    """Bytes of anonymous memory now, and of resident memory at its peak; zeros once the process has gone (Linux)."""
    try:
        lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
    return values.get("RssAnon", 0), values.get("VmHWM", 0)
