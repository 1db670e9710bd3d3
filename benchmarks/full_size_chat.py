"""A full-size Baichuan-7B of random weights, in its original layout, answers in 8 bits: how much memory?

    python benchmarks/full_size_chat.py [--folder DIR] [--keep]

Writes a 14 GB folder (one pytorch_model.bin, W_pack, inv_freq), runs `chuan chat --bits 8` on it as a user would, and
samples the process's memory. Needs 16 GB of memory for writing, 15 GB of disk, Linux, and some minutes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from machine import describe_machine, read_memory

from chuan.model.config import PRESETS
from chuan.tokenizer.spm import build_model_proto

LIMIT = 9.5e9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write the model (default: a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="leave the folder there; an existing one is used again")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="baichuan-7b-random-"))
    print(describe_machine())
    try:
        if not (folder / "pytorch_model.bin").is_file():
            started = time.perf_counter()
            # In a process of its own, so that its 14 GB are given back before anything is measured.
            subprocess.run([sys.executable, "-c", f"import full_size_chat as f; f.write_folder({str(folder)!r})"],
                           check=True, cwd=Path(__file__).parent)  # fmt: skip
            print(f"wrote {folder} in {time.perf_counter() - started:.0f} s")
        return measure(folder)
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)


def write_folder(name: str) -> None:
    """Random weights under the names and in the shapes that the first generation was published with."""
    folder = Path(name)
    folder.mkdir(parents=True, exist_ok=True)
    config = PRESETS["baichuan-7b"]
    width, ffn = config.hidden_size, config.intermediate_size
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)

    weights = {"model.embed_tokens.weight": random(config.vocab_size, width)}
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        weights |= {
            f"{prefix}self_attn.W_pack.weight": random(3 * width, width),
            f"{prefix}self_attn.o_proj.weight": random(width, width),
            f"{prefix}self_attn.rotary_emb.inv_freq": torch.ones(config.head_dim // 2),
            f"{prefix}mlp.gate_proj.weight": random(ffn, width),
            f"{prefix}mlp.up_proj.weight": random(ffn, width),
            f"{prefix}mlp.down_proj.weight": random(width, ffn),
            f"{prefix}input_layernorm.weight": torch.ones(width, dtype=torch.bfloat16),
            f"{prefix}post_attention_layernorm.weight": torch.ones(width, dtype=torch.bfloat16),
        }
    weights |= {"model.norm.weight": torch.ones(width, dtype=torch.bfloat16), "lm_head.weight": random(64000, width)}
    torch.save(weights, folder / "pytorch_model.bin")
    published = {"architectures": ["BaiChuanForCausalLM"], "model_type": "baichuan", "hidden_act": "silu"}
    (folder / "config.json").write_text(json.dumps(config.to_dict() | published))
    roles = {"user_token_id": 195, "assistant_token_id": 196, "eos_token_id": 2, "max_new_tokens": 2048}
    (folder / "generation_config.json").write_text(json.dumps(roles))
    (folder / "tokenizer.model").write_bytes(build_vocabulary(config.vocab_size))


def build_vocabulary(size: int, dummy_prefix: bool = True) -> bytes:
    """Pieces in the published order: controls, reserved pieces, bytes, characters, and filler."""
    normal, unknown, control, user_defined, byte = 1, 2, 3, 4, 6
    pieces = [("<unk>", unknown), ("<s>", control), ("</s>", control)]
    first = 93 if dummy_prefix else 89  # so that 195 is <reserved_102>, and in the second generation <reserved_106>
    pieces += [(f"<spare_{index}>", user_defined) for index in range(3, first)]
    pieces += [(f"<reserved_{index - first}>", user_defined) for index in range(first, 393)]
    pieces += [(f"<0x{value:02X}>", byte) for value in range(256)]
    characters = ["▁", *map(chr, range(33, 127)), *map(chr, range(0x4E00, 0x9FA6))]
    pieces += [(character, normal) for character in characters]
    pieces += [(f"▁a{index}", normal) for index in range(size - len(pieces))]
    names, kinds = zip(*pieces, strict=True)
    scores = [-float(index) for index in range(size)]
    return build_model_proto(names, scores, kinds, add_dummy_prefix=dummy_prefix).SerializeToString()


def measure(folder: Path) -> int:
    """Runs the chat and prints its peaks; the exit code says whether the limit was kept."""
    command = [
        Path(sys.executable).with_name("chuan"),
        "chat",
        folder,
        "--bits",
        "8",
        "-m",
        "你好",
        "--max-new-tokens",
        "8",
    ]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    anonymous = resident = 0
    while process.poll() is None:
        now, peak = read_memory(process.pid)
        anonymous, resident = max(anonymous, now), max(resident, peak)
        time.sleep(0.02)
    answer = process.stdout.read().strip() if process.stdout else ""
    print(f"answer: {answer!r} (random weights), exit code {process.returncode}, {time.perf_counter() - started:.0f} s")
    print(f"peak anonymous memory {anonymous / 1e9:.2f} GB (limit {LIMIT / 1e9} GB)")
    print(f"peak resident size {resident / 1e9:.2f} GB, the mapped file's pages included")
    return 0 if process.returncode == 0 and answer and anonymous < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
