"""Where and in what precision to compute.

In: what the user asked for. Out: a torch device and dtype that the hardware is fast at.
"""

from __future__ import annotations

import torch

from chuan.errors import ChuanError, first_line

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def choose_device(name: str) -> torch.device:
    """ "auto" is CUDA, then MPS, then the CPU; any other name is torch's own ("cpu", "cuda:1" ...)."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ChuanError(f"the device {name!r} cannot be used ({first_line(error):.100}); try device='cpu'") from None
    if device.type == "meta":
        raise ChuanError("the device 'meta' holds no numbers; try device='cpu'")
    return device


def choose_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 where the hardware multiplies it fast, else float32.

    A CPU needs AVX512-BF16 or AMX for it: without, bfloat16 was measured 190 times slower than float32.
    """
    if isinstance(name, torch.dtype):
        if name not in DTYPES.values():
            raise ChuanError(f"dtype {name} is not supported; choose {', '.join(DTYPES)} or auto")
        return name
    if name == "auto":
        return torch.bfloat16 if _multiplies_bfloat16(device) else torch.float32
    if name not in DTYPES:
        raise ChuanError(f"dtype {name!r} is not known; choose {', '.join(DTYPES)} or auto")
    return DTYPES[name]


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return device.type == "mps"
