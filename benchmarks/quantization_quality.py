"""What few bits cost: perplexity at 8 and 4 bits against float32, beside llama.cpp's Q4_0, and planted outliers.

    python benchmarks/quantization_quality.py --text HELD_OUT.txt [--calibrate OTHER.txt] [--llama-python PYTHON]

Every model is opened by `chuan.load(..., bits=...)` with its default settings and asked by `logits`, which is the path
that answers take. Plain text of 21,000 tokens or more; windows of 1,024 tokens, each read from its start. `--calibrate`
must be another text. The increases are paired, token by token, and so is the standard error beside them.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from machine import describe_machine
from torch import Tensor, nn

import chuan
from chuan.inference.convert import convert
from chuan.inference.language_model import LanguageModel
from chuan.quantization.int8 import Int8Linear

WINDOW = 1024
LEAST_TOKENS = 20_000
LOGITS_TOKENS = 256


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="what perplexity is measured on")
    parser.add_argument("--model", default="smollm2-135m", help="a name, folder or GGUF")
    parser.add_argument("--calibrate", type=Path, help="what the calibrated weights are fitted to")
    parser.add_argument("--llama-python", help="a Python that has llama-cpp-python")
    parser.add_argument("--tokens", type=int, default=LEAST_TOKENS, help="fewer are for trying the script")
    given = parser.parse_args()
    print(describe_machine())
    exact = chuan.load(given.model, bits=16, dtype="float32", device="cpu")
    windows = cut_windows(exact, given.text, given.tokens)
    print(f"{given.model}, {given.text.name}: {windows.numel()} tokens in windows of {windows.shape[1]}\n")
    print("| weights | perplexity | increase | standard error |\n|---|---|---|---|")
    base = measure_losses(exact, windows)
    report("float32", base, base)
    del exact
    increases = {}
    for bits in (8, 4):
        losses = measure_losses(chuan.load(given.model, bits=bits, device="cpu"), windows)  # type: ignore[arg-type]
        increases[f"int{bits}"] = report(f"int{bits}", losses, base)
    with tempfile.TemporaryDirectory() as name:
        if given.calibrate is not None:
            folder = Path(name) / "calibrated"
            convert(given.model, folder, bits=4, calibrate=given.calibrate)
            losses = measure_losses(chuan.load(folder, device="cpu"), windows)
            increases["int4 calibrated"] = report(f"int4, fitted to {given.calibrate.name}", losses, base)
        if given.llama_python is not None:
            file = Path(name) / "q4_0.gguf"
            convert(given.model, file, "gguf", gguf_type="q4_0")
            version, losses = ask_llama_cpp(given.llama_python, file, windows)
            increases["Q4_0"] = report(f"Q4_0, llama-cpp-python {version}", losses, base)
        print()
        print(
            "| logits of int8 against | float32 | of that, rounding the weights | the same weights, float activations |"
        )
        print("|---|---|---|---|")
        measure_activations(given.model, windows[0, :LOGITS_TOKENS], Path(name) / "plain", planted=False)
        planted = measure_activations(given.model, windows[0, :LOGITS_TOKENS], Path(name) / "planted", planted=True)
    return 1 if check(increases, planted) else 0


def cut_windows(model: LanguageModel, text: Path, tokens: int) -> Tensor:
    """(windows, T) ids from the beginning of a text."""
    ids = model.tokenizer.encode(text.read_text(encoding="utf-8"))
    count = math.ceil(tokens / WINDOW)
    if len(ids) < count * WINDOW:
        sys.exit(f"{text} has {len(ids)} tokens; {count * WINDOW} are needed")
    return torch.tensor(ids[: count * WINDOW]).view(count, WINDOW)


def measure_losses(model: LanguageModel, windows: Tensor) -> Tensor:
    """Minus the log-probability of every token but the first of each window."""
    losses = []
    for window in windows:
        logits = model.logits(window)[:-1]
        losses.append(nn.functional.cross_entropy(logits, window[1:], reduction="none"))
    gc.collect()
    return torch.cat(losses).double()


def report(label: str, losses: Tensor, base: Tensor) -> float:
    """Prints a row; the increase of the perplexity, in percent."""
    difference = losses - base
    increase = 100 * math.expm1(float(difference.mean()))
    error = 100 * float(difference.std()) / math.sqrt(len(difference))
    print(f"| {label} | {math.exp(float(losses.mean())):.3f} | {increase:+.2f} % | {error:.2f} % |", flush=True)
    return increase


def ask_llama_cpp(python: str, file: Path, windows: Tensor) -> tuple[str, Tensor]:
    """Its version, and its losses in the order of ours."""
    request, answer = file.with_name("ids.json"), file.with_name("losses.json")
    request.write_text(json.dumps(windows.tolist()))
    script = Path(__file__).with_name("llama_cpp_perplexity_side.py")
    subprocess.run([python, script, file, request, answer], check=True)
    found = json.loads(answer.read_text())
    return found["version"], torch.tensor(found["losses"], dtype=torch.float64).flatten()


def measure_activations(name: str, ids: Tensor, folder: Path, planted: bool) -> float:
    """Prints relative errors of logits; the last of them, in percent, is returned.

    Planted: four channels of every norm are a hundred times larger, and the weights behind them as much smaller. The
    function stays what it was, as with the outliers of real models; the activations do not. Rounding the weights, one
    scale an output, has a price of its own that no treatment of activations changes: hence the third figure.
    """
    model = chuan.load(name, bits=16, dtype="float32", device="cpu")
    if planted:
        plant_outliers(model)
    model.save(folder)
    exact = model.logits(ids)
    for module in model.decoder.model.layers.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(Int8Linear.quantize(module.weight).dequantize(), requires_grad=False)
    rounded = model.logits(ids)
    found = chuan.load(folder, bits=8, device="cpu").logits(ids)
    errors = [100 * float((a - b).norm() / b.norm()) for a, b in ((found, exact), (rounded, exact), (found, rounded))]
    label = "four channels of every norm x 100" if planted else "as it is"
    print(f"| {label} | {errors[0]:.2f} % | {errors[1]:.2f} % | {errors[2]:.2f} % |", flush=True)
    return errors[2]


@torch.no_grad()
def plant_outliers(model: LanguageModel) -> None:
    """In place: other channels for every norm."""
    generator = torch.Generator().manual_seed(0)
    width = model.decoder.config.hidden_size
    for layer in model.decoder.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        behind_norms = (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        )
        for norm, linears in behind_norms:
            channels = torch.randperm(width, generator=generator)[:4]
            norm.weight[channels] *= 100
            for linear in linears:
                linear.weight[:, channels] /= 100


def check(increases: dict[str, float], planted: float) -> int:
    """Prints what was demanded; the number of demands that were missed."""
    demands = {"int8 within 0.5 % of float32": increases["int8"] <= 0.5, "planted outliers within 2 %": planted <= 2}
    if "Q4_0" in increases:
        demands["int4 at most Q4_0"] = increases["int4"] <= increases["Q4_0"]
        if "int4 calibrated" in increases:
            demands["int4 calibrated at most 0.8 of Q4_0"] = increases["int4 calibrated"] <= 0.8 * increases["Q4_0"]
    for label, met in demands.items():
        print(f"{label}: {'met' if met else 'MISSED'}")
    return sum(not met for met in demands.values())


if __name__ == "__main__":
    sys.exit(main())
