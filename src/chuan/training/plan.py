"""What a run would need, before it is run: memory by part, time, and the layout of ranks that is fastest.

In: a recipe of pre-training, a type and a number of GPUs. Out: a forecast for each layout that the recipe allows. Knows
no devices; everything is arithmetic. Letters: W width, Q and K widths of all queries and of all keys, H heads, I width
of the feed-forward, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from chuan.errors import ChuanError
from chuan.model.config import ModelConfig
from chuan.training.gpus import Gpu
from chuan.training.loss import GPU_LOGITS, count_slice
from chuan.training.metrics import count_operations
from chuan.training.parallel import check_tensor_parallel
from chuan.training.recipe import PretrainRecipe

NODE = 8  # GPUs that NVLink joins
# Share of a GPU's peak that it reaches while it computes, waiting for nobody: ours, so that the published runs of
# benchmarks/published_runs.py (41 to 58 % over whole runs) come out on both sides of the forecast.
MFU = 0.5
LINK_SHARE = 0.7  # of a link's rate that collectives reach: an assumption
COPY_SHARE = 0.85  # of the memory's rate that copies reach: an assumption
USABLE = 0.95  # of the memory; the rest is the context of CUDA, NCCL's buffers and fragments: an assumption


@dataclass(frozen=True)
class Layout:
    """How the ranks are used; `shard` ranks split what the `tensor` ranks of a group hold."""

    tensor: int
    replicas: int
    shard: int
    checkpointing: bool
    micro_rows: int


@dataclass(frozen=True)
class Forecast:
    layout: Layout
    memory: dict[str, float]  # bytes a GPU, by part
    seconds: dict[str, float]  # of a step, by part
    tokens_per_second: float  # of all GPUs
    mfu: float  # over the whole step, recomputation not counted

    @property
    def total_memory(self) -> float:
        return sum(self.memory.values())


def plan(recipe: PretrainRecipe, gpus: int, gpu: Gpu, mfu: float = MFU) -> list[Forecast]:
    """A forecast for each layout that fits into the memory, the fastest first; among equals the leanest.

    Raises ChuanError where the rows of a step cannot be shared out over the GPUs, or no layout fits.
    """
    if recipe.dtype in ("float32", "float8"):
        raise ChuanError("the rates of GPUs are known for bfloat16 alone; add --set dtype=bfloat16")
    forecasts = [forecast(recipe, layout, gpu, mfu) for layout in list_layouts(recipe, gpus)]
    if not forecasts:
        raise ChuanError(
            f"batch.rows {recipe.batch.rows} cannot be shared out evenly over {gpus} GPUs, split by tensor parallelism "
            "or not; change --gpus, or --set batch.rows to a multiple of it"
        )
    fitting = [item for item in forecasts if item.total_memory <= USABLE * gpu.memory]
    if not fitting:
        least = min(item.total_memory for item in forecasts)
        raise ChuanError(
            f"the leanest layout needs {least / 1e9:.1f} GB of each GPU and {USABLE * gpu.memory / 1e9:.1f} can be "
            "used; take more GPUs, a GPU with more memory, or a smaller model or data.length"
        )
    fitting.sort(key=lambda item: (-item.tokens_per_second, item.total_memory))
    best: dict[tuple[int, int, bool], Forecast] = {}
    for item in fitting:  # of the sizes of a part of a batch, the leanest that is fastest
        best.setdefault((item.layout.tensor, item.layout.replicas, item.layout.checkpointing), item)
    return list(best.values())


def list_layouts(recipe: PretrainRecipe, gpus: int) -> Iterator[Layout]:
    config = recipe.model.build_config()
    for tensor in (1, 2, 4, NODE):
        if gpus % tensor or recipe.batch.rows % (gpus // tensor) or not _splits(config, tensor):
            continue
        data, share = gpus // tensor, recipe.batch.rows // (gpus // tensor)
        for replicas in _divisors(data):
            for micro_rows in _divisors(share):
                for checkpointing in (False, True):
                    yield Layout(tensor, replicas, data // replicas, checkpointing, micro_rows)


def forecast(recipe: PretrainRecipe, layout: Layout, gpu: Gpu, mfu: float = MFU) -> Forecast:
    """Memory and time of one layout."""
    seconds = estimate_seconds(recipe, layout, gpu, mfu)
    tokens = recipe.batch.rows * recipe.data.length
    gpus = layout.tensor * layout.replicas * layout.shard
    rate = tokens / sum(seconds.values())
    operations = count_operations(recipe.model.build_config(), recipe.data.length)
    return Forecast(layout, estimate_memory(recipe, layout), seconds, rate, rate * operations / gpus / gpu.peak)


def estimate_memory(
    recipe: PretrainRecipe, layout: Layout, size: int = 2, logits: int = GPU_LOGITS
) -> dict[str, float]:
    """Bytes a GPU at the highest point, by part; `size` is that of a computed number, `logits` how many exist at once.

    Weights, gradients and optimizer are float32 and sharded (ZeRO stage 3: Rajbhandari et al. 2019,
    https://arxiv.org/abs/1910.02054, section 5). Whole are the layer that is computed and, where ranks share it, the
    one fetched meanwhile; all the time, embedding and head. On the way back a layer's gradients are whole too, as
    computed, beside those of the layer before it in float32 to be summed over the ranks; at the very end those of
    embedding and head, with their sum. What comes back through a feed-forward is twice its width.
    """
    config = recipe.model.build_config()
    tokens = layout.micro_rows * recipe.data.length
    layer, root = count_layer(config) / layout.tensor, count_root(config) / layout.tensor
    mine = (layer * config.num_hidden_layers + root) / layout.shard
    matrices = layer * config.num_hidden_layers / layout.shard
    moments = 2 * mine - (matrices if recipe.optimizer.kind == "muon" else 0)
    compiled = recipe.parallel.compile and layout.tensor == 1  # the two do not work together
    one = estimate_layer_activations(config, compiled, layout.tensor, size) * tokens
    kept = size * config.hidden_size * tokens if layout.checkpointing else one
    head = (config.hidden_size * (4 + 2 * size) + 4) * tokens
    vocabulary = config.vocab_size / layout.tensor
    rows = min(tokens, count_slice(vocabulary, logits))
    # Logits in float32 and their gradient as computed; then the latter and what a slice adds to the head's gradient.
    loss = vocabulary * (4 * config.hidden_size + size * rows + max(4 * rows, size * config.hidden_size))
    whole = 1 if layout.shard == 1 else 2
    way_back = layer * (whole * size + size + 4) + vocabulary * config.hidden_size * size
    way_back += (one if layout.checkpointing else 0) + 2 * size * config.intermediate_size * tokens / layout.tensor
    way_back -= head  # gone by then
    activations = kept * config.num_hidden_layers + head
    end = root * (size + 4 + 4 / layout.shard)  # when activations are gone
    return {
        "weights": 4 * mine,
        "gradients": 4 * mine,
        "optimizer": 4 * moments,
        "embedding and head, whole": size * root,
        "activations": activations,
        "logits, or a layer on the way back": max(loss, way_back, end - activations),
    }


def estimate_layer_activations(config: ModelConfig, compiled: bool, tensor: int = 1, size: int = 2) -> float:
    """Bytes a token that a layer keeps for the way back.

    Each norm: its input in float32, the scaled input, the output, and the scale. Attention: q, k, v, the output, the
    logarithms of its sums. Feed-forward: gate, its SiLU, up, and their product. Compiled, what lies between two
    products is computed again, from a norm's input and output, gate, up and their product (counted in torch 2.13).
    """
    width, heads = config.hidden_size, config.num_attention_heads
    attention = size * 2 * (heads + config.num_key_value_heads) * config.head_dim + 4 * heads
    norms = 2 * (size * 2 * width + 4 + (0 if compiled else 4 * width))
    return norms + (attention + (3 if compiled else 4) * size * config.intermediate_size) / tensor


def estimate_seconds(recipe: PretrainRecipe, layout: Layout, gpu: Gpu, mfu: float) -> dict[str, float]:
    """Seconds of a step, by part.

    Computing: the operations at `mfu` of the peak, those of the layers' way forward once more with checkpointing.
    Sharding: for each part of a batch the weights are gathered twice and the gradients scattered once (ZeRO, section
    7), in float32 and, with replicas, summed over them; hidden behind computing as far as that lasts. Tensor parallel:
    four sums of the activations a layer, two more with checkpointing (Megatron-LM: Shoeybi et al. 2019,
    https://arxiv.org/abs/1909.08053, section 3); nothing hides them. A ring moves (n - 1) / n of the bytes for a gather
    or a scatter and twice that for a sum. Copying and the optimizer: what they read and write, at the memory's rate.
    """
    config = recipe.model.build_config()
    length = recipe.data.length
    tensor, shard = layout.tensor, layout.shard
    parts = recipe.batch.rows // (layout.replicas * shard) // layout.micro_rows
    tokens = parts * layout.micro_rows * length
    operations = count_operations(config, length)
    if layout.checkpointing:
        operations += (operations - 6 * config.vocab_size * config.hidden_size) // 3
    computing = operations * tokens / tensor / (mfu * gpu.peak)
    weights = config.parameter_count / tensor
    shard_rate = LINK_SHARE * _link(gpu, layout, tensor * shard)
    replica_rate = LINK_SHARE * _link(gpu, layout, tensor * shard * layout.replicas)
    sharding = (2 * 2 + 4) * weights * (shard - 1) / shard / shard_rate
    sharding += 2 * 4 * weights / shard * (layout.replicas - 1) / layout.replicas / replica_rate
    sums = (6 if layout.checkpointing else 4) * config.num_hidden_layers
    splitting = sums * 2 * config.hidden_size * tokens * 2 * (tensor - 1) / tensor / (LINK_SHARE * gpu.link)
    copy_rate = COPY_SHARE * gpu.memory_rate
    # Clipping reads the gradients and scales them; the optimizer reads four numbers a weight and writes three.
    return {
        "computing": computing,
        "copying": count_copied(config, shard, parts) / tensor / copy_rate,
        "waiting for weights and gradients": max(0.0, parts * sharding - computing),
        "tensor parallel": splitting,
        "optimizer": 4 * 10 * weights / shard / copy_rate,
    }


def count_copied(config: ModelConfig, shard: int, parts: int) -> float:
    """Bytes of bfloat16 and float32 that FSDP's copies of weights and gradients read and write in a step (torch 2.13).

    For each part of a batch a layer's weights are made bfloat16 twice, and those of embedding and head once: cast,
    copied into a common buffer and, where that was gathered, out of it. Gradients are copied into a buffer in float32,
    and from the second part on added to those before; alone, what would have been their sum over ranks is a copy.
    """
    weights, root = config.parameter_count, count_root(config)
    gathered = 2 * (weights - root) + root
    unshard = ((4 + 2) + (2 + 2)) / shard + (0 if shard == 1 else 2 + 2)
    reduce = (2 + 4) + (4 + 4 if shard == 1 else 0)
    add = (4 + 4 + 4) / shard
    return parts * (unshard * gathered + reduce * weights) + (parts - 1) * add * weights


def count_layer(config: ModelConfig) -> int:
    return (config.parameter_count - count_root(config)) // config.num_hidden_layers


def count_root(config: ModelConfig) -> int:
    """Weights outside of the layers: embedding, head, and the last norm."""
    return config.hidden_size * (config.vocab_size * (1 if config.tie_word_embeddings else 2) + 1)


def _link(gpu: Gpu, layout: Layout, group: int) -> float:
    """The slowest link inside of groups of neighbouring ranks: they lie in one node, or across."""
    inside = layout.tensor * layout.replicas * layout.shard <= NODE or NODE % group == 0
    return gpu.link if inside else gpu.network


def _splits(config: ModelConfig, tensor: int) -> bool:
    try:
        check_tensor_parallel(config, tensor)
    except ChuanError:
        return False
    return True


def _divisors(number: int) -> list[int]:
    small = [value for value in range(1, math.isqrt(number) + 1) if number % value == 0]
    return sorted({*small, *(number // value for value in small)})
