"""What `chuan plan` forecasts for runs whose cost was published, beside what was published.

    python benchmarks/published_runs.py

Prints the table of docs/training.md. "Published MFU" is what the published hours or rate come to by Chuan's own count
of operations (Baichuan's is as stated). The forecast is of Chuan's fastest layout on those GPUs. Where a report does
not say how many GPUs were used, or how many rows a step had, 512 for 7B and 1,024 for 70B, and 4 million tokens, are
taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chuan.training.gpus import GPUS
from chuan.training.metrics import count_operations
from chuan.training.plan import plan
from chuan.training.recipe import PretrainRecipe

LLAMA, LLAMA2 = "https://arxiv.org/abs/2302.13971", "https://arxiv.org/abs/2307.09288"
SHAPES: dict[str, dict[str, int]] = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "65b": {"hidden_size": 8192, "intermediate_size": 22016, "num_hidden_layers": 80, "num_attention_heads": 64},
    "70b": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}


@dataclass(frozen=True)
class Run:
    """A published run; its GPU hours, or the MFU or tokens a second and GPU that it states."""

    name: str
    source: str
    shape: str
    vocabulary: int
    length: int
    rows: int
    gpu: str
    gpus: int
    tokens: float
    hours: float | None = None
    mfu: float | None = None
    rate: float | None = None


BAICHUAN, OLMO = "https://github.com/baichuan-inc/Baichuan-7B", "https://pypi.org/project/ai2-olmo-core/1.2.0"
RUNS = [
    Run("Baichuan-7B", BAICHUAN, "7b", 64000, 4096, 1000, "a800-80gb", 1000, 1.2e12, mfu=0.583),
    Run("LLaMA 7B", LLAMA, "7b", 32000, 2048, 2048, "a100-80gb", 512, 1.0e12, hours=82432),
    Run("LLaMA 65B", LLAMA, "65b", 32000, 2048, 2048, "a100-80gb", 2048, 1.4e12, hours=1022362),
    Run("Llama 2 7B", LLAMA2, "7b", 32000, 4096, 1024, "a100-80gb", 512, 2.0e12, hours=184320),
    Run("Llama 2 70B", LLAMA2, "70b", 32000, 4096, 1024, "a100-80gb", 1024, 2.0e12, hours=1720320),
    # 9,700 to 10,000 tokens a second and GPU; the vocabulary is not stated there and taken as 100,352.
    Run("OLMo-core 7B", OLMO, "7b", 100352, 4096, 1024, "h100-sxm", 512, 1.0e12, rate=9850),
]


def build_recipe(run: Run) -> PretrainRecipe:
    values: dict[str, Any] = {
        "output": "-",
        "steps": 1,
        "model": SHAPES[run.shape] | {"vocab_size": run.vocabulary, "max_position_embeddings": run.length},
        "data": {"shards": "-", "tokenizer": "-", "length": run.length},
        "batch": {"rows": run.rows},
        "optimizer": {"learning_rate": 3e-4},
        "parallel": {"compile": True},
    }
    return PretrainRecipe.model_validate(values)


def compare(run: Run) -> tuple[float, float, float, float]:
    """GPU hours and MFU, forecast and published."""
    recipe = build_recipe(run)
    best = plan(recipe, run.gpus, GPUS[run.gpu])[0]
    peak = GPUS[run.gpu].peak * 3600  # operations a GPU hour
    work = count_operations(recipe.model.build_config(), run.length) * run.tokens
    if run.hours is not None:
        hours = run.hours
    elif run.rate is not None:
        hours = run.tokens / run.rate / 3600
    else:
        assert run.mfu is not None
        hours = work / run.mfu / peak
    return work / best.mfu / peak, best.mfu, hours, work / hours / peak


def main() -> None:
    print(
        "| run | GPUs | tokens | GPU hours: forecast | published | forecast / published | MFU: forecast | published |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for run in RUNS:
        hours, mfu, published, published_mfu = compare(run)
        print(
            f"| [{run.name}]({run.source}) | {run.gpu} | {run.tokens / 1e12:.1f} T | {hours:,.0f} | {published:,.0f} | "
            f"{hours / published:.2f} | {100 * mfu:.1f} % | {100 * published_mfu:.1f} % |"
        )


if __name__ == "__main__":
    main()
