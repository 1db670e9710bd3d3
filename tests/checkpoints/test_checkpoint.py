"""Loading weights: what is checked, what is converted on the way, and how much memory it takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from chuan.checkpoints.checkpoint import load_decoder
from chuan.checkpoints.folder import open_folder
from chuan.checkpoints.layouts import list_weights
from chuan.inference.convert import convert
from chuan.quantization.int8 import Int8Linear, dequantize_rows, quantize_rows
from chuan.quantization.methods import apply_quantization
from tests.support.folders import write_baichuan_folder, write_llama_folder
from tests.support.loading import CPU, build_ids, load_logits, refusal

NORM = "model.norm.weight"
GATE = "model.layers.0.mlp.gate_proj.weight"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    write_llama_folder(tmp_path)
    return tmp_path


def edit_weights(folder: Path, remove: str | None = None, **changes: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors.pop(remove, None)
    save_file(tensors | changes, path, metadata={"format": "pt"})


@pytest.mark.parametrize("name", [NORM, GATE, "model.embed_tokens.weight", "lm_head.weight"])
def test_a_missing_weight_is_refused(llama: Path, name: str):
    edit_weights(llama, remove=name)
    assert f"{llama} lacks the weight {name}" in refusal(load_logits, llama)


@pytest.mark.parametrize("name", ["model.layers.2.mlp.gate_proj.weight", "extra", f"{GATE}_scale", "model.norm.bias"])
def test_weights_that_nobody_accounts_for_are_refused(llama: Path, name: str):
    edit_weights(llama, **{name: torch.ones(3)})
    assert f"{llama} has the weight {name} (and 0 more)" in refusal(load_logits, llama)


def test_buffers_of_old_files_are_ignored(llama: Path):
    expected = load_logits(llama)
    prefix = "model.layers.0.self_attn."
    edit_weights(llama, **{f"{prefix}rotary_emb.inv_freq": torch.ones(8), f"{prefix}causal_mask": torch.ones(2)})
    assert torch.equal(load_logits(llama), expected)


def test_a_head_beside_tied_embeddings_is_ignored(tmp_path: Path):
    write_llama_folder(tmp_path, tie_word_embeddings=True)
    expected = load_logits(tmp_path)
    edit_weights(tmp_path, **{"lm_head.weight": torch.ones(3)})
    assert torch.equal(load_logits(tmp_path), expected)


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": 321},
        {"hidden_size": 128},
        {"intermediate_size": 95},
        {"num_key_value_heads": 4},
        {"num_attention_heads": 2},
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 1},
        {"head_dim": 8},
        {"tie_word_embeddings": False, "mlp_bias": True},
    ],
)
def test_shapes_that_contradict_the_config_are_refused(llama: Path, change: dict):
    path = llama / "config.json"
    values = json.loads(path.read_text())
    values.pop("head_dim", None)
    path.write_text(json.dumps(values | change))
    message = refusal(load_logits, llama)
    assert str(llama) in message
    assert any(says in message for says in ("the configuration says", "lacks the weight", "does not account for"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("bits", [16, 8])
def test_nan_and_infinity_are_refused(llama: Path, bits: int, value: float):
    for name in (GATE, NORM, "lm_head.weight"):
        tensors = load_file(llama / "model.safetensors")
        broken = tensors[name].clone()
        broken.view(-1)[7] = value
        edit_weights(llama, **{name: broken})
        message = refusal(load_logits, llama, bits)
        assert f"{name} in {llama}/model.safetensors holds NaN or infinity; fetch the file again" in message
        edit_weights(llama, **{name: tensors[name]})


@pytest.mark.parametrize("bits", [None, 8])
def test_int8_without_scales_is_refused(tmp_path: Path, bits):
    state = write_baichuan_folder(tmp_path)
    name = "model.layers.0.self_attn.W_pack.weight"
    edit_weights(tmp_path, **{name: quantize_rows(state[name])[0]})
    message = refusal(load_logits, tmp_path, bits)
    assert f"{name} in {tmp_path}/model.safetensors is int8 without its scales" in message
    assert "16-bit weights" in message


def test_eight_bits_are_those_of_a_finished_model(llama: Path):
    reference = load_decoder(open_folder(llama), torch.float32, CPU)
    apply_quantization(reference, 8)
    decoder = load_decoder(open_folder(llama), torch.float32, CPU, bits=8)
    assert sum(isinstance(module, Int8Linear) for module in decoder.modules()) == 14
    ids = build_ids(decoder.config.vocab_size)
    with torch.inference_mode():
        assert torch.equal(decoder(ids), reference(ids))


def test_dtype_is_the_one_asked_for(llama: Path):
    decoder = load_decoder(open_folder(llama), torch.bfloat16, CPU)
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.bfloat16}
    assert not decoder.training
    assert not any(parameter.requires_grad for parameter in decoder.parameters())


@pytest.mark.parametrize("odd", ["model.embed_tokens.weight", "lm_head.weight", NORM])
def test_the_type_is_that_of_the_linears(llama: Path, odd: str):
    for dtype in (torch.float16, torch.float32):
        state = {name: tensor.to(dtype) for name, tensor in load_file(llama / "model.safetensors").items()}
        edit_weights(llama, **state | {odd: state[odd].to(torch.bfloat16)})
        assert open_folder(llama).open_weights().dtype == dtype


def test_values_that_the_type_cannot_hold_name_the_weight(llama: Path, tmp_path: Path):
    state = {name: tensor.half() for name, tensor in load_file(llama / "model.safetensors").items()}
    edit_weights(llama, **state | {GATE: torch.full_like(state[GATE], 1e6, dtype=torch.float32)})
    message = refusal(convert, llama, tmp_path.parent / "out")
    assert message.startswith(f"{GATE} in {llama}/model.safetensors has values too large for float16")


def test_progress_counts_every_tensor(llama: Path):
    heard = []
    checkpoint = open_folder(llama)
    load_decoder(checkpoint, torch.float32, CPU, progress=lambda done, total: heard.append((done, total)))
    total = len(list_weights(checkpoint.config))
    assert heard == [(done, total) for done in range(1, total + 1)]


def test_dequantized_rows_are_within_half_a_step():
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    quantized, scale = quantize_rows(weight)
    assert ((dequantize_rows(quantized, scale) - weight).abs() <= scale / 2 * 1.001).all()


# Grown: what is not a page of a file, after the baseline of an idle process with torch in it.
MEMORY = """
import json, sys
from pathlib import Path
import torch
from chuan.checkpoints.checkpoint import load_decoder
from chuan.checkpoints.folder import open_folder

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def warm(folder):  # libraries allocate on first use
    load_decoder(open_folder(Path(folder)), torch.float32, torch.device("cpu"), 8)

def measure(folder, bits):
    start, samples = anonymous(), []
    decoder = load_decoder(
        open_folder(Path(folder)), torch.float32, torch.device("cpu"), bits, lambda *_: samples.append(anonymous())
    )
    kept.append(decoder)
    size = sum(t.nbytes for t in [*decoder.parameters(), *decoder.buffers()])
    return {"grown": max(samples) - start, "model": size}

kept = []
warm(sys.argv[1])
print(json.dumps([measure(folder, bits) for folder in sys.argv[2:] for bits in (16, 8)]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_is_the_model_and_one_tensor(tmp_path: Path):
    tiny = tmp_path / "tiny"
    write_baichuan_folder(tiny)
    generator = torch.Generator().manual_seed(0)
    width, ffn, layers, vocabulary = 512, 1536, 5, 1000
    folders = []
    state = {"model.embed_tokens.weight": (vocabulary, width), "lm_head.weight": (vocabulary, width), NORM: (width,)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        state |= {f"{prefix}self_attn.W_pack.weight": (3 * width, width), f"{prefix}mlp.down_proj.weight": (width, ffn)}
        state |= {f"{prefix}mlp.{name}_proj.weight": (ffn, width) for name in ("gate", "up")}
        state |= {f"{prefix}self_attn.o_proj.weight": (width, width), f"{prefix}input_layernorm.weight": (width,)}
        state |= {f"{prefix}post_attention_layernorm.weight": (width,)}
    tensors = {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in state.items()}
    config = json.loads((tiny / "config.json").read_text())
    config |= {"hidden_size": width, "intermediate_size": ffn, "num_hidden_layers": layers, "vocab_size": vocabulary}
    for kind in ("bin", "safetensors"):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        folders.append(str(folder))
    torch.save(tensors, tmp_path / "bin" / "pytorch_model.bin")
    save_file(tensors, tmp_path / "safetensors" / "model.safetensors")
    # glibc would keep freed memory for later, more or less of it by the threads' turns: what is held is to be measured.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tiny), *folders], capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 0, done.stderr[-2000:]
    file_size = sum(tensor.nbytes for tensor in tensors.values())
    largest = max(4 * tensor.numel() for tensor in tensors.values())
    slack = 2 << 20  # the libraries' own
    assert file_size > 1.5 * (largest + slack)  # a copy of the file would show
    for measured in json.loads(done.stdout):
        print(f"{measured['grown'] / 1e6:.1f} MB for a model of {measured['model'] / 1e6:.1f} MB")
        assert measured["grown"] <= measured["model"] + largest + slack
