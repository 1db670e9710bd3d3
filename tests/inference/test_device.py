import pytest
import torch

from chuan.errors import ChuanError
from chuan.inference.device import choose_device, choose_dtype
from chuan.model.config import PRESETS
from chuan.model.memory import estimate_cache, estimate_weights

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx2": True}, torch.float32),
        ({"avx2": True, "avx512_f": True, "avx512_vnni": True}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
    ],
)
def test_auto_is_what_the_processor_computes_fast(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict, dtype: torch.dtype
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_dtype("auto", CPU) == dtype


def test_names_and_dtypes():
    assert choose_dtype("float16", CPU) == torch.float16
    assert choose_dtype(torch.bfloat16, CPU) == torch.bfloat16
    for bad in ("int8", "float64", torch.int8, torch.float64):
        with pytest.raises(ChuanError, match="bfloat16, float16, float32"):
            choose_dtype(bad, CPU)


def test_devices():
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    for bad in ("toaster", "", "meta", "cuda:99"):
        with pytest.raises(ChuanError, match="device='cpu'") as info:
            choose_device(bad)
        assert "\n" not in str(info.value)


def test_memory_of_the_published_models():
    assert estimate_weights(PRESETS["baichuan2-7b"], 16) == 2 * 7_505_973_248
    assert estimate_weights(PRESETS["baichuan-7b"], 8) == pytest.approx(7.53e9, rel=0.01)
    assert estimate_cache(PRESETS["baichuan-7b"], 4096) == 2 * 2 * 32 * 4096 * 4096
