"""The few-bit folders of 2023 and of today: weights bit for bit what they mean, bad ones refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit
from safetensors.torch import load_file, save_file
from torch import Tensor

from chuan.checkpoints.checkpoint import load_decoder
from chuan.checkpoints.folder import open_folder
from chuan.quantization.codebook import CodebookLinear
from chuan.quantization.int8 import Int8Linear
from chuan.quantization.linear import QuantizedLinear
from tests.support.folders import build_baichuan_twin, write_baichuan_folder
from tests.support.loading import CPU, build_ids, refusal
from tests.support.quantized_folders import (
    edit_bin,
    is_linear,
    set_config,
    write_codes_folder,
    write_listed_folder,
    write_scb_folder,
)

LAYOUTS: dict[str, Callable[..., dict[str, Tensor]]] = {
    "scb string": write_scb_folder,
    "scb tensor": lambda path, generation: write_scb_folder(path, generation, "tensor"),
    "scb without a format": lambda path, generation: write_scb_folder(path, generation, "none"),
    "listed nf4": write_listed_folder,
    "nf4": write_codes_folder,
    "nf4 not nested": lambda path, generation: write_codes_folder(path, generation, nested=False),
    "fp4": lambda path, generation: write_codes_folder(path, generation, "fp4"),
}
W_PACK = "model.layers.0.self_attn.W_pack"
DOWN = "model.layers.1.mlp.down_proj"


def split_state(meant: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layers' linears under the decoder's names."""
    state = {}
    for name, tensor in meant.items():
        if name.endswith("W_pack.weight"):
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                state[name.replace("W_pack", f"{part}_proj")] = rows
        elif name.endswith("proj.weight"):
            state[name] = tensor
    return state


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_what_the_files_mean_bit_for_bit(tmp_path: Path, layout: str, generation):
    meant = LAYOUTS[layout](tmp_path, generation)
    wide = load_decoder(open_folder(tmp_path), torch.float32, CPU, 16)
    for name, expected in split_state(meant).items():
        assert torch.equal(wide.get_parameter(name), expected.float()), name


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bits", [None, "same", 16])
def test_logits_are_those_of_the_floats_that_they_mean(tmp_path: Path, layout: str, generation, bits):
    meant = LAYOUTS[layout](tmp_path, generation)
    few = 8 if layout.startswith("scb") else 4
    decoder = load_decoder(open_folder(tmp_path), torch.float32, CPU, few if bits == "same" else bits)
    quantized = [module for module in decoder.modules() if isinstance(module, QuantizedLinear)]
    assert [module.bits for module in quantized] == ([] if bits == 16 else [few] * 14)
    twin = build_baichuan_twin(meant, generation)
    ids = build_ids(512)
    with torch.inference_mode():
        found, expected = decoder(ids), twin(ids).logits
    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-5


def test_few_bits_stay_as_they_are_in_memory(tmp_path: Path):
    write_scb_folder(tmp_path / "8")
    write_listed_folder(tmp_path / "4")
    stored = torch.load(tmp_path / "8" / "pytorch_model.bin", weights_only=True)
    linear = load(tmp_path / "8").get_submodule(DOWN)
    assert isinstance(linear, Int8Linear)
    assert torch.equal(linear.weight, stored[f"{DOWN}.weight"])
    assert torch.equal(linear.weight_scale.flatten(), stored[f"{DOWN}.SCB"] / 127)
    stored = torch.load(tmp_path / "4" / "pytorch_model.bin", weights_only=True)
    linear = load(tmp_path / "4").get_submodule(DOWN)
    assert isinstance(linear, CodebookLinear)
    assert torch.equal(linear.weight, stored[f"{DOWN}.weight.data"].flatten())


def test_four_bits_load_as_eight_and_eight_as_four(tmp_path: Path):
    meant = split_state(write_listed_folder(tmp_path / "4"))
    eight = load_decoder(open_folder(tmp_path / "4"), torch.float32, CPU, 8).get_submodule(DOWN)
    assert isinstance(eight, Int8Linear)
    assert torch.equal(eight.weight, Int8Linear.quantize(meant[f"{DOWN}.weight"]).weight)
    write_scb_folder(tmp_path / "8")
    four = load_decoder(open_folder(tmp_path / "8"), torch.float32, CPU, 4).get_submodule(DOWN)
    assert four.bits == 4


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp4"])
def test_state_dicts_of_its_own_modules_are_read(tmp_path: Path, kind: str):
    """The keys and tensors are those that bitsandbytes' modules save, not ours."""
    state = write_baichuan_folder(tmp_path, dtype=torch.float16)
    stored = {}
    for name, tensor in state.items():
        if not is_linear(name):
            stored[name] = tensor
            continue
        outputs, inputs = tensor.shape
        if kind == "int8":
            module = Linear8bitLt(inputs, outputs, bias=False, has_fp16_weights=False)
            module.weight = Int8Params(tensor, requires_grad=False, has_fp16_weights=False).to("cpu")
        else:
            module = Linear4bit(inputs, outputs, bias=False, quant_type=kind)
            module.weight = Params4bit(tensor, requires_grad=False, quant_type=kind).to("cpu")
        prefix = name.removesuffix("weight")
        stored |= {f"{prefix}{key}": value for key, value in module.state_dict().items()}
    assert f"{DOWN}.SCB" in stored or f"{DOWN}.weight.quant_state.bitsandbytes__{kind}" in stored
    save_file(stored, tmp_path / "model.safetensors")
    wide = load_decoder(open_folder(tmp_path), torch.float32, CPU, 16)
    step = 1 / 254 if kind == "int8" else 0.3  # of a row's, or a block's, largest
    for name, tensor in split_state(state).items():
        difference = (wide.get_parameter(name) - tensor.float()).abs().amax(dim=1)
        assert bool((difference <= 1.01 * step * tensor.float().abs().amax(dim=1)).all()), name


def test_a_config_copied_from_the_other_folder_does_not_matter(tmp_path: Path):
    """Users were told to put the 4-bit folder's configuration beside their 8-bit weights."""
    write_scb_folder(tmp_path)
    set_config(tmp_path, quantization_config={"load_in_4bit": True})
    linear = load_decoder(open_folder(tmp_path), torch.float32, CPU).get_submodule(DOWN)
    assert isinstance(linear, Int8Linear)
    set_config(tmp_path, quantization_config=None)
    assert isinstance(load_decoder(open_folder(tmp_path), torch.float32, CPU).get_submodule(DOWN), Int8Linear)


def load(path: Path) -> Any:
    return load_decoder(open_folder(path), torch.float32, CPU)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({f"{DOWN}.SCB": torch.ones(63)}, f"{DOWN}.SCB in"),
        ({f"{DOWN}.SCB": torch.full((64,), float("nan"))}, "NaN or infinity"),
        (
            {f"{DOWN}.SCB": None},
            "is int8 without its scales (SCB), as save_pretrained wrote it after model.quantize(8)",
        ),
        ({f"{DOWN}.weight_format": "col_turing"}, "(weight_format col_turing)"),
        ({f"{DOWN}.weight_format": "col_ampere"}, "use them with --bits 8 (bits=8)"),
        ({f"{DOWN}.weight_format": torch.tensor(2, dtype=torch.uint8)}, "(weight_format col_turing)"),
        ({f"{DOWN}.weight_format": torch.tensor([7, 7])}, "(weight_format [7, 7])"),
        ({f"{DOWN}.weight": torch.ones(64, 96)}, "no int8 weights that belong to them"),
        ({f"{DOWN}.weight": None}, "no int8 weights that belong to them"),
        ({f"{DOWN}.weight": torch.ones(64, 97, dtype=torch.int8)}, "has the shape [64, 97]"),
    ],
)
def test_bad_int8_is_one_line(tmp_path: Path, changes: dict[str, Any], words: str):
    write_scb_folder(tmp_path)
    edit_bin(tmp_path, **changes)
    message = refusal(load, tmp_path)
    assert words in message
    assert DOWN in message


NAME = f"{DOWN}.weight.quant_state"


def change_list(position: int, value: Any) -> Callable[[list[Any]], Any]:
    return lambda state: [*state[:position], value, *state[position + 1 :]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state[:4], "is not the list of seven parts"),
        (lambda state: [], "is not the list of seven parts"),
        (lambda state: "nf4", "is not the list of seven parts"),
        (lambda state: None, "is packed, and what describes it is missing"),
        (change_list(0, state := torch.zeros(95, dtype=torch.uint8)), "has 95 absmax, its quant_state says 96"),
        (change_list(0, torch.zeros(96)), "is not packed as its quant_state says"),
        (change_list(0, "absmax"), "is not the list of seven parts"),
        (change_list(1, torch.Size((64, 95))), "has the shape [64, 95]"),
        (change_list(1, torch.Size((64, 2, 48))), "is not the list of seven parts"),
        (change_list(1, torch.Size((96, 64))), "has the shape [96, 64]"),
        (change_list(3, 0), "is not the list of seven parts"),
        (change_list(3, 128), "has 96 absmax, its quant_state says 48"),
        (change_list(4, [0.5]), "is not the list of seven parts"),
        (change_list(4, [10**400, [torch.ones(1), torch.ones(256), 256]]), "is not the list of seven parts"),
        (change_list(4, None), "is not packed as its quant_state says"),
        (change_list(5, "int4"), "is not the list of seven parts"),
        (change_list(6, torch.zeros(15)), "has 15 quant_map, its quant_state says 16"),
        (change_list(6, torch.full((16,), float("inf"))), "NaN or infinity"),
    ],
)
def test_a_bad_list_is_one_line(tmp_path: Path, change: Callable[[list[Any]], Any], words: str):
    write_listed_folder(tmp_path)
    stored = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    edit_bin(tmp_path, **{NAME: change(stored[NAME])})
    message = refusal(load, tmp_path)
    assert words in message
    assert DOWN in message


def test_a_list_without_its_code_is_nf4(tmp_path: Path):
    """bitsandbytes 0.39 and 0.40 wrote six parts."""
    meant = split_state(write_listed_folder(tmp_path))
    stored = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    edit_bin(tmp_path, **{NAME: stored[NAME][:6]})
    wide = load_decoder(open_folder(tmp_path), torch.float32, CPU, 16)
    assert torch.equal(wide.get_parameter(f"{DOWN}.weight"), meant[f"{DOWN}.weight"])


@pytest.mark.parametrize("missing", ["absmax", "quant_map", "nested_absmax", "quant_state.bitsandbytes__nf4"])
def test_missing_keys_are_one_line(tmp_path: Path, missing: str):
    write_codes_folder(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "m")
    from_file = load_file(tmp_path / "m")
    del from_file[f"{DOWN}.weight.{missing}"]
    torch.save(from_file, tmp_path / "pytorch_model.bin")
    message = refusal(load, tmp_path)
    assert DOWN in message
    assert "fetch" in message


def test_an_offset_that_no_float_holds_is_one_line(tmp_path: Path):
    write_codes_folder(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    key = f"{DOWN}.weight.quant_state.bitsandbytes__nf4"
    values = json.loads(bytes(tensors[key].tolist())) | {"nested_offset": 10**400}
    tensors[key] = torch.tensor(list(json.dumps(values).encode()), dtype=torch.uint8)
    save_file(tensors, tmp_path / "model.safetensors")
    assert "its quant_state cannot be read" in refusal(load, tmp_path)


def test_a_pickle_with_code_in_its_list_is_not_opened(tmp_path: Path):
    class Evil:
        def __reduce__(self) -> Any:
            return (print, ("executed",))

    write_listed_folder(tmp_path)
    edit_bin(tmp_path, **{NAME: [Evil()]})
    assert "a pickle can carry code" in refusal(load, tmp_path)
