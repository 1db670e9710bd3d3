"""Our GGUF in llama-cpp-python: the same logits, the same tokens, the same chat.

    pip install llama-cpp-python        # anywhere; it is no dependency of Chuan
    python benchmarks/gguf_in_llama_cpp.py [--llama-python PYTHON]

Small random models of both generations' shape (the second with its 125,696 pieces and NormHead) are written as GGUF of
every type. Teacher-forced over 2 x 64 positions: where the two best logits lie further apart than the largest
difference between the programs, both must choose the same token. Takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from full_size_chat import build_vocabulary
from machine import describe_machine

import chuan
from chuan.chat.messages import Message
from chuan.inference.convert import convert
from chuan.model.config import ModelConfig

WORDS = ["the", "river", "runs", "to", "sea", "温故而知新", "可以为师矣", "百川东到海", ",", "。", "123", "😀", "x"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-python", default=sys.executable, help="a Python that has llama-cpp-python")
    python = parser.parse_args().llama_python
    print(describe_machine())
    failures = 0
    with tempfile.TemporaryDirectory() as name:
        for generation, vocabulary in ((1, 64000), (2, 125696)):
            folder = Path(name) / f"baichuan{generation}"
            write_small(folder, generation, vocabulary)
            for kind in ("bf16", "f16", "q8_0", "q4_0", "q4_1"):
                file = Path(name) / f"{generation}-{kind}.gguf"
                convert(folder, file, "gguf", gguf_type=kind)  # type: ignore[arg-type]
                failures += compare(file, folder, python, f"generation {generation}, {kind}")
                file.unlink()
    return 1 if failures else 0


def write_small(folder: Path, generation: int, vocabulary: int) -> None:
    """Two layers of width 256 under the published names; weights large enough to make logits differ."""
    folder.mkdir()
    config = ModelConfig(vocabulary, 256, 2, 4, intermediate_size=704, max_position_embeddings=4096)
    generator = torch.Generator().manual_seed(generation)

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.1).bfloat16()

    weights = {"model.embed_tokens.weight": draw(vocabulary, 256), "lm_head.weight": draw(vocabulary, 256)}
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        weights |= {
            f"{prefix}self_attn.W_pack.weight": draw(768, 256),
            f"{prefix}self_attn.o_proj.weight": draw(256, 256),
            f"{prefix}mlp.gate_proj.weight": draw(704, 256),
            f"{prefix}mlp.up_proj.weight": draw(704, 256),
            f"{prefix}mlp.down_proj.weight": draw(256, 704),
            f"{prefix}input_layernorm.weight": 1 + draw(256),
            f"{prefix}post_attention_layernorm.weight": 1 + draw(256),
        }
    torch.save(weights | {"model.norm.weight": 1 + draw(256)}, folder / "pytorch_model.bin")
    class_name = "BaiChuanForCausalLM" if generation == 1 else "BaichuanForCausalLM"
    published = {"architectures": [class_name], "model_type": "baichuan"}
    (folder / "config.json").write_text(json.dumps(config.to_dict() | published))
    roles = {"user_token_id": 195, "assistant_token_id": 196, "eos_token_id": 2, "max_new_tokens": 2048}
    (folder / "generation_config.json").write_text(json.dumps(roles))
    (folder / "tokenizer.model").write_bytes(build_vocabulary(vocabulary, dummy_prefix=generation == 1))


def compare(file: Path, reference: Path, python: str, label: str) -> int:
    """Prints one line; the number of checks that failed. The reference answers in float32."""
    rng = random.Random(0)
    ours = chuan.load(file, dtype="float32", device="cpu")
    source = chuan.load(reference, dtype="float32", device="cpu")
    ids = [[rng.randrange(ours.decoder.config.vocab_size) for _ in range(64)] for _ in range(2)]
    conversations = [draw_conversation(rng) for _ in range(100)]
    role = source.tokenizer.decode([195])
    answer = ask_llama_cpp(file, python, ids, [role], conversations)
    assert ours.chat_format is not None
    rendered = [ours.chat_format.render([Message(**m) for m in c], 10**6, 64) for c in conversations]
    same_chats = sum(list(answer[f"chat{index}"]) == expected for index, expected in enumerate(rendered))
    one_id = list(answer["text0"]) == [195]
    found = [torch.from_numpy(answer[f"logits{index}"]) for index in range(len(ids))]
    with_file = measure([ours.logits(row) for row in ids], found)
    with_source = measure([source.logits(row) for row in ids], found)
    right = with_file["disagree"] == 0 and same_chats == len(conversations) and one_id
    print(
        f"{label:22} llama.cpp {answer['version']}: against the same file in float32, largest difference "
        f"{with_file['error']:.4f}, KL {with_file['kl']:.1e}, {with_file['decided']}/128 positions decided, "
        f"{with_file['disagree']} of them differ; against the source KL {with_source['kl']:.1e}; "
        f"{role} is {'one id' if one_id else 'NOT one id'}; {same_chats}/{len(conversations)} chats the same ids",
        flush=True,
    )
    return 0 if right else 1


def ask_llama_cpp(file: Path, python: str, ids: Any, texts: list[str], conversations: Any) -> Any:
    """Runs the other program in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        request, answer = Path(name) / "request.json", Path(name) / "answer.npz"
        request.write_text(json.dumps({"ids": ids, "texts": texts, "conversations": conversations}))
        script = Path(__file__).with_name("llama_cpp_side.py")
        subprocess.run([python, script, file, request, answer], check=True)
        with np.load(answer) as loaded:
            return {key: loaded[key] for key in loaded.files}


def measure(expected: list[torch.Tensor], found: list[torch.Tensor]) -> dict[str, float]:
    """Largest difference, KL, positions decided by more than that difference, and how many of those disagree."""
    first, second = torch.cat(expected), torch.cat(found)
    error = float((first - second).abs().max())
    best = first.topk(2, dim=-1).values
    decided = best[:, 0] - best[:, 1] > error
    disagree = (first.argmax(dim=-1) != second.argmax(dim=-1)) & decided
    log_p, log_q = first.log_softmax(dim=-1), second.log_softmax(dim=-1)
    kl = float((log_p.exp() * (log_p - log_q)).sum(dim=-1).mean())
    return {"error": error, "kl": kl, "decided": int(decided.sum()), "disagree": int(disagree.sum())}


def draw_conversation(rng: random.Random) -> list[dict[str, str]]:
    def text() -> str:
        return rng.choice(["", " ", "\n"]) + " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 12)))

    messages = [{"role": "system", "content": text()}] if rng.random() < 0.5 else []
    for turn in range(rng.choice([1, 3, 5])):
        messages.append({"role": "assistant" if turn % 2 else "user", "content": text()})
    return messages


if __name__ == "__main__":
    sys.exit(main())
