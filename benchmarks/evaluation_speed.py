"""Questions a second: Chuan's evaluation beside one question at a time through transformers.

    python benchmarks/evaluation_speed.py DATA [--subjects 8] [--sample 12] [--dtype float32]

SmolLM2-135M, 5-shot, protocol `baichuan`: subjects spread evenly over MMLU's test, C-Eval's val and its test, each
whole, as an evaluation asks them, the demonstrations new to the engine when its turn comes. The loop does a full pass
for each question, logits of the last position alone; since no question makes the next one faster, it is asked a sample
of each subject, and its time for a subject is that of the sample times the questions in it. Both sides have the same
prompts, type and threads, and take turns, a subject each; the answers are compared.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from machine import describe_machine
from transformers import AutoModelForCausalLM, PreTrainedModel

import chuan
from chuan.evaluation.backends.chuan import ChuanBackend
from chuan.evaluation.evaluate import answer_letters, build_plan, load_plan
from chuan.evaluation.prompts import Ask, build_prompts
from chuan.evaluation.protocols import LetterProtocol, find_protocol
from chuan.tasks.benchmarks import find_benchmark

LETTERS = "ABCD"


def ask_chuan(backend: ChuanBackend, protocol: LetterProtocol, asks: list[Ask]) -> dict[str, str]:
    """Letters by question."""
    return {row["id"]: row["predicted"] for row in answer_letters(protocol, asks, backend, "base")}


@torch.inference_mode()
def ask_loop(
    model: PreTrainedModel, backend: ChuanBackend, protocol: LetterProtocol, asks: list[Ask]
) -> dict[str, tuple[str, float]]:
    """Letters by question, with their lead over the second."""
    letter_ids = backend.find_letters(protocol.letters)
    answers = {}
    for prompt in build_prompts(protocol, asks, lambda texts: backend.encode(texts, protocol.bos), 1 << 30):
        logits = model(torch.tensor([prompt.token_ids]), logits_to_keep=1).logits[0, -1, letter_ids].float()
        best, second = logits.topk(2).values.tolist()
        answers[prompt.ask.question.id] = LETTERS[int(logits.argmax())], best - second
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--sample", type=int, default=12)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    print(describe_machine())
    print(f"SmolLM2-135M, {arguments.dtype}, {torch.get_num_threads()} threads, 5-shot\n")
    model = chuan.load("smollm2-135m", bits=16, dtype=arguments.dtype, device="cpu")
    backend = ChuanBackend(model)
    with tempfile.TemporaryDirectory() as folder:
        saved = model.save(Path(folder) / "model")
        loop = AutoModelForCausalLM.from_pretrained(saved, dtype=getattr(torch, arguments.dtype)).eval()
    print(
        "| benchmark | questions | tokens each | loop, questions/s | Chuan, questions/s | times | by subject, median "
        "(least to most) | other answers |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---|")
    for benchmark, split in [("mmlu", "test"), ("ceval", "val"), ("ceval", "test")]:
        protocol = find_protocol(benchmark, "baichuan")
        names = list(find_benchmark(benchmark).subjects)
        spread = names[:: max(1, len(names) // arguments.subjects)][: arguments.subjects]
        seconds, questions, tokens, flips = [0.0, 0.0], 0, 0, []
        ratios: list[float] = []
        for name in spread:
            asks = load_plan(build_plan(benchmark, "baichuan", split, 5, None, name, arguments.data))
            sample = random.Random(0).sample(asks, min(arguments.sample, len(asks)))
            start = time.perf_counter()
            ours = ask_chuan(backend, protocol, asks)
            between = time.perf_counter()
            theirs = ask_loop(loop, backend, protocol, sample)
            loop_seconds = (time.perf_counter() - between) * len(asks) / len(sample)
            seconds = [seconds[0] + loop_seconds, seconds[1] + between - start]
            ratios.append(loop_seconds / (between - start))
            questions += len(asks)
            prompts = build_prompts(protocol, asks, lambda texts: backend.encode(texts, False), 1 << 30)
            tokens += sum(len(prompt.token_ids or []) for prompt in prompts)
            flips += [
                f"{name} {key} (lead {lead:.2g})" for key, (letter, lead) in theirs.items() if ours[key] != letter
            ]
        rates = [questions / second for second in seconds]
        figures = [
            f"{benchmark} {split}",
            f"{questions}",
            f"{tokens / questions:.0f}",
            f"{rates[0]:.2f}",
            f"{rates[1]:.2f}",
        ]
        spread_of = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        figures += [f"{rates[1] / rates[0]:.1f}", spread_of, ", ".join(flips) or "none"]
        print("| " + " | ".join(figures) + " |", flush=True)


if __name__ == "__main__":
    main()
