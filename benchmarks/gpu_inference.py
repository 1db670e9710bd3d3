"""A 7B of random weights on one GPU, at 8, 4 and 16 bits: speed, share of the memory's rate, and distance to float32.

    python benchmarks/gpu_inference.py FOLDER --gpu h100-sxm     # 11 GB of disk, 45 GB of the GPU's memory

The folder gets the int8 and int4 models of random_7b.py, if it has them not yet; 16 bits are the int8 model's. Each is
measured by `chuan bench`'s own function. Bytes are those of the weights that a step reads, and of the keys and
values. The distance is the norm of the difference of the logits, over that of float32's with the same weights, for a
prompt that runs as rows of a captured graph and one that does not.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from machine import describe_machine
from random_7b import INT4, INT8, build, clean
from torch import Tensor

from chuan.inference.bench import BenchResult, measure_decode, run_bench
from chuan.inference.language_model import LanguageModel
from chuan.inference.load import load
from chuan.inference.runner import TorchRunner
from chuan.training.gpus import Gpu, find_gpu

FORMS = {"int8": (INT8, None), "int4": (INT4, None), "bfloat16": (INT8, 16)}
_DRAWING = random.Random(0)
PROMPTS = [[_DRAWING.randrange(64000) for _ in range(length)] for length in (40, 300)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gpu", type=find_gpu, required=True, help="a type of chuan.training.gpus")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    paths = {form: build(arguments.folder, form) for form in (INT8, INT4)}
    clean(arguments.folder)
    print(describe_machine() + f", {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}\n", flush=True)
    print(
        "| weights | load s | first token s | prefill tokens/s | sequences | ms a step | tokens/s | GB/s | "
        "of the measured rate | of the data sheet | plain decoder ms | distance to float32 |"
    )
    print("|" + "---|" * 12)
    expected: dict[str, list[Tensor]] = {}
    for name, (form, bits) in FORMS.items():
        result = run_bench(str(paths[form]), bits=bits, device="cuda", prompt_tokens=512, sequences=(1, 8))
        torch.cuda.empty_cache()
        model = load(paths[form], bits=bits, device="cuda")  # type: ignore[arg-type]
        found = [model.logits(prompt) for prompt in PROMPTS]
        plain = time_plain_steps(model)
        del model
        torch.cuda.empty_cache()
        if form not in expected:
            exact = load(paths[form], bits=16, device="cuda", dtype="float32")  # no kernel of ours is in it
            expected[form] = [exact.logits(prompt) for prompt in PROMPTS]
            del exact
            torch.cuda.empty_cache()
        distances = [float((a - b).norm() / b.norm()) for a, b in zip(found, expected[form], strict=True)]
        print_rows(name, result, arguments.gpu, plain, " / ".join(f"{value:.2%}" for value in distances))


def print_rows(name: str, result: BenchResult, gpu: Gpu, plain: dict[int, float], distance: str) -> None:
    prefill, *decodes = result.speeds
    for speed in decodes:
        step = speed.seconds / (speed.tokens / speed.sequences) * 1e3
        print(
            f"| {name} | {result.load_seconds:.1f} | {result.first_token_seconds:.2f} | "
            f"{prefill.tokens_per_second:,.0f} | {speed.sequences} | {step:.2f} | {speed.tokens_per_second:,.0f} | "
            f"{speed.bandwidth / 1e9:,.0f} | {speed.bandwidth / result.limits.bandwidth:.0%} | "
            f"{speed.bandwidth / gpu.memory_rate:.0%} | {plain[speed.sequences]:.1f} | {distance} |",
            flush=True,
        )


def time_plain_steps(model: LanguageModel) -> dict[int, float]:
    """Milliseconds of a step of 1 and of 8 sequences as the plain decoder runs it."""
    model.engine.runner = TorchRunner(model.decoder, model.engine.runner.page_count)
    times = {}
    for sequences in (1, 8):
        measure_decode(model, 128, 4, sequences)
        speed = measure_decode(model, 128, 16, sequences)
        times[sequences] = speed.seconds / 16 * 1e3
    return times


if __name__ == "__main__":
    main()
