"""Full size, once: few-bit folders of a random Baichuan2-7B, opened as they are, and turned into a GGUF.

    pip install llama-cpp-python        # anywhere; it is no dependency of Chuan
    python benchmarks/full_size_conversions.py [--folder DIR] [--llama-python PYTHON]

1. An int8 folder (bitsandbytes' SCB in a .bin) is opened at 8 bits: peak anonymous memory under 10 GB.
2. It becomes a Q8_0 GGUF, which llama-cpp-python opens: where the two best logits lie further apart than the largest
   difference between the programs, both choose the same token, over 64 positions.
3. The official 4-bit layout (the pickled list) is opened at 4 bits: under 6.5 GB.

Needs 24 GB of memory, 25 GB of disk, Linux, and half an hour.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from full_size_chat import build_vocabulary
from gguf_in_llama_cpp import ask_llama_cpp, measure
from machine import describe_machine, read_memory

from chuan.model.config import PRESETS
from chuan.quantization.codebook import NF4

LIMITS = {8: 10.0e9, 4: 6.5e9}
POSITIONS = 64
ANSWER = """
import json, sys
import numpy as np
import chuan
model = chuan.load(sys.argv[1], bits=int(sys.argv[2]), device="cpu", dtype=sys.argv[3])
np.save(sys.argv[5], model.logits(json.loads(sys.argv[4])).numpy())
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--llama-python", default=sys.executable, help="a Python that has llama-cpp-python")
    arguments = parser.parse_args()
    print(describe_machine(), flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        return run(Path(name), arguments.llama_python)


def run(folder: Path, python: str) -> int:
    rng = random.Random(0)
    ids = [rng.randrange(125696) for _ in range(POSITIONS)]
    right = True
    in_own_process("write_int8", folder / "int8")
    expected, kept = open_and_answer(folder / "int8", 8, "bfloat16", ids)
    right &= kept
    file = folder / "model.gguf"
    started = time.perf_counter()
    chuan = Path(sys.executable).with_name("chuan")
    _, peak = watch([chuan, "convert", folder / "int8", file, "--to", "gguf", "--type", "q8_0"])
    print(
        f"to GGUF Q8_0 in {time.perf_counter() - started:.0f} s, peak anonymous memory {peak / 1e9:.2f} GB", flush=True
    )
    answer = ask_llama_cpp(file, python, [ids], ["<reserved_106>"], [])
    found = measure([torch.from_numpy(expected)], [torch.from_numpy(answer["logits0"])])
    print(
        f"llama.cpp {answer['version']} on it, against our 8 bits: largest difference {found['error']:.3f}, "
        f"KL {found['kl']:.1e}, {found['decided']}/{POSITIONS} positions decided, {found['disagree']} of them differ; "
        f"<reserved_106> is {answer['text0'].tolist()}",
        flush=True,
    )
    right &= found["disagree"] == 0 and answer["text0"].tolist() == [195]
    file.unlink()
    in_own_process("write_list", folder / "list")
    _, kept = open_and_answer(folder / "list", 4, "bfloat16", ids)
    return 0 if right and kept else 1


def open_and_answer(folder: Path, bits: int, dtype: str, ids: list[int]) -> tuple[np.ndarray, bool]:
    """Loads the folder in a process of its own; its logits, and whether the limit of memory was kept."""
    target = folder.with_suffix(".npy")
    started = time.perf_counter()
    command = [sys.executable, "-c", ANSWER, str(folder), str(bits), dtype, json.dumps(ids), str(target)]
    code, peak = watch(command)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(
        f"{folder.name} folder of {size / 1e9:.2f} GB, opened at {bits} bits and asked for {len(ids)} logits: peak "
        f"anonymous memory {peak / 1e9:.2f} GB (limit {LIMITS[bits] / 1e9} GB), {time.perf_counter() - started:.0f} s",
        flush=True,
    )
    return np.load(target), code == 0 and peak < LIMITS[bits]


def watch(command: list[Any]) -> tuple[int, int]:
    """Runs a command; its exit code and its peak of anonymous memory."""
    process = subprocess.Popen(command)
    peak = 0
    while process.poll() is None:
        peak = max(peak, read_memory(process.pid)[0])
        time.sleep(0.02)
    return process.returncode, peak


def in_own_process(function: str, folder: Path) -> None:
    """So that its memory is given back before anything is measured."""
    code = f"import full_size_conversions as f; f.{function}({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


def write_int8(name: str) -> None:
    """As load_in_8bit=True and save_pretrained wrote it in 2023: int8, SCB, weight_format as a string."""
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, Any] = {}
    for module, shape in list_linears():
        weights[f"{module}.weight"] = torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator)
        # What is added to the residual is small, as it is in trained models: else every rounding grows layer by layer
        # until two programs agree on nothing.
        size = 0.04 if module.endswith(("W_pack", "gate_proj", "up_proj")) else 0.04 / 8
        weights[f"{module}.SCB"] = torch.empty(shape[0]).uniform_(0.8 * size, 1.2 * size, generator=generator)
        weights[f"{module}.weight_format"] = "row"
    save(Path(name), weights, {"load_in_8bit": True}, generator)


def write_list(name: str) -> None:
    """The official 4-bit layout: codes, and a list with nested absmax."""
    generator = torch.Generator().manual_seed(0)
    code, code256 = torch.tensor(NF4), torch.linspace(-1, 1, 256)
    weights: dict[str, Any] = {}
    for module, shape in list_linears():
        elements = shape[0] * shape[1]
        codes = torch.randint(0, 256, (elements // 2, 1), dtype=torch.uint8, generator=generator)
        absmax = torch.randint(0, 256, (elements // 64,), dtype=torch.uint8, generator=generator)
        nested = [torch.full((elements // 64 // 256,), 0.01), code256, 256, False, torch.float32, None, None]
        state = [absmax, torch.Size(shape), torch.float16, 64, [torch.tensor(0.05), nested], "nf4", code]
        weights[f"{module}.weight.data"], weights[f"{module}.weight.quant_state"] = codes, state
    save(Path(name), weights, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, generator)


def list_linears() -> list[tuple[str, tuple[int, int]]]:
    """The five projections of each layer."""
    config = PRESETS["baichuan2-7b"]
    width, ffn = config.hidden_size, config.intermediate_size
    shapes = {
        "self_attn.W_pack": (3 * width, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (ffn, width),
        "mlp.up_proj": (ffn, width),
        "mlp.down_proj": (width, ffn),
    }
    layers = range(config.num_hidden_layers)
    return [(f"model.layers.{layer}.{module}", shape) for layer in layers for module, shape in shapes.items()]


def save(folder: Path, weights: dict[str, Any], quantization: dict[str, Any], generator: torch.Generator) -> None:
    """Adds what stays in 16 bits, and the files beside the weights."""
    folder.mkdir(parents=True)
    config = PRESETS["baichuan2-7b"]
    shape = (config.vocab_size, config.hidden_size)
    # Rows of the embedding as large as what the layers add to them, so that the residual carries them to the head.
    for name, size in (("model.embed_tokens.weight", 1.0), ("lm_head.weight", 0.02)):
        weights[name] = torch.empty(shape, dtype=torch.bfloat16).normal_(0, size, generator=generator)
    ones = torch.ones(config.hidden_size, dtype=torch.bfloat16)
    for layer in range(config.num_hidden_layers):
        weights[f"model.layers.{layer}.input_layernorm.weight"] = ones
        weights[f"model.layers.{layer}.post_attention_layernorm.weight"] = ones
    torch.save(weights | {"model.norm.weight": ones}, folder / "pytorch_model.bin")
    published = {"architectures": ["BaichuanForCausalLM"], "model_type": "baichuan"}
    table = config.to_dict() | published | {"quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(table))
    roles = {"user_token_id": 195, "assistant_token_id": 196, "eos_token_id": 2, "max_new_tokens": 2048}
    (folder / "generation_config.json").write_text(json.dumps(roles))
    (folder / "tokenizer.model").write_bytes(build_vocabulary(config.vocab_size, dummy_prefix=False))


if __name__ == "__main__":
    sys.exit(main())
