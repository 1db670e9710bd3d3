"""How fast a loaded model is, and how much of the machine that uses.

In: a `LanguageModel`, or the name of one. Out: seconds, counts and bytes, as numbers. Knows no terminal and no other
program. Prompts are random ids and answers run to their full length, so that nothing is reused, guessed or cut short.
Letters: T tokens, S tokens before them.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import psutil
import torch
from torch import nn

from chuan.errors import ChuanError
from chuan.inference.engine import Engine
from chuan.inference.language_model import LanguageModel
from chuan.inference.load import load
from chuan.inference.native import NativeRunner
from chuan.inference.request import Generation
from chuan.inference.sampling import SamplingOptions
from chuan.model.config import ModelConfig
from chuan.model.decoder import Decoder
from chuan.model.memory import estimate_cache
from chuan.quantization.int4 import Int4Linear
from chuan.quantization.int8 import Int8Linear
from chuan.quantization.integer import IntegerLinear
from chuan.quantization.methods import find_bits, quantize

# The context that decoding is measured behind.
CONTEXT = 128
_REPEATS = 3


@dataclass(frozen=True)
class Speed:
    """One measured phase of so many sequences together: their tokens, the bytes read and the operations done for them.

    bytes_read counts weights once a step, and keys and values; operations are multiplications and additions.
    """

    phase: Literal["prefill", "decode"]
    sequences: int
    tokens: int
    seconds: float
    bytes_read: int
    operations: int

    @property
    def tokens_per_second(self) -> float:
        """Of all sequences together."""
        return self.tokens / self.seconds

    @property
    def bandwidth(self) -> float:
        """Bytes a second."""
        return self.bytes_read / self.seconds

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds


@dataclass(frozen=True)
class Limits:
    """What the machine itself reaches: bytes read a second, and operations a second in the model's own arithmetic."""

    bandwidth: float
    rate: float


@dataclass(frozen=True)
class BenchResult:
    """All of it. Times in seconds, memory in bytes; `first_token_seconds` is from the loaded model, cold, to a prompt
    of one token; `peak_memory` is anonymous memory (on a GPU: what torch allocated there), loading counted."""

    model: str
    device: str
    dtype: str
    bits: int
    threads: int
    weight_bytes: int
    load_seconds: float
    first_token_seconds: float
    peak_memory: int
    speeds: tuple[Speed, ...]
    limits: Limits


def run_bench(
    name: str,
    bits: Literal[16, 8, 4] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    prompt_tokens: int = 256,
    new_tokens: int = 64,
    sequences: Sequence[int] = (1, 8),
    progress: Callable[[str], None] = lambda _: None,
) -> BenchResult:
    """Loads the model and measures it; `progress` hears what comes next. Raises ChuanError where lengths do not fit."""
    if prompt_tokens < 1 or new_tokens < 2 or not sequences or min(sequences) < 1:
        raise ChuanError("a measurement needs a prompt of at least 1 token, 2 new tokens and 1 sequence")
    progress("loading")
    with PeakMemory() as memory:
        start = time.perf_counter()
        model = load(name, bits=bits, device=device, dtype=dtype)
        load_seconds = time.perf_counter() - start
        longest = max(prompt_tokens + 1, CONTEXT + new_tokens + count_spare_tokens(model, CONTEXT, max(sequences)))
        room = model.engine.context_length
        if longest > room:
            raise ChuanError(f"{longest} tokens do not fit a context of {room}; lower --prompt-tokens or --new-tokens")
        weight = model.decoder.model.embed_tokens.weight
        progress("first token")
        first = measure_prefill(model, 1).seconds
        model.engine.runner.finish_loading()
        progress(f"prefill, {prompt_tokens} tokens")
        measure_prefill(model, min(prompt_tokens, 32))  # what is made at first use is made
        runs = [measure_prefill(model, prompt_tokens) for _ in range(_REPEATS)]
        speeds = [sorted(runs, key=lambda run: run.seconds)[_REPEATS // 2]]
        for count in sequences:
            progress(f"decode, {count} together")
            if weight.device.type == "cuda":  # where lengths and counts have graphs of their own
                measure_decode(model, CONTEXT, new_tokens, count)
            speeds.append(measure_decode(model, CONTEXT, new_tokens, count))
    progress("the machine's limits")
    return BenchResult(
        model=name,
        device=str(weight.device),
        dtype=str(weight.dtype).removeprefix("torch."),
        bits=find_bits(model.decoder),
        threads=torch.get_num_threads(),
        weight_bytes=count_weight_bytes(model.decoder),
        load_seconds=load_seconds,
        first_token_seconds=first,
        peak_memory=memory.peak if weight.device.type != "cuda" else torch.cuda.max_memory_allocated(weight.device),
        speeds=tuple(speeds),
        limits=Limits(measure_bandwidth(weight.device), measure_rate(model.decoder)),
    )


def measure_prefill(model: LanguageModel, tokens: int) -> Speed:
    """A prompt of T tokens, to the choice of the first one of the answer."""
    engine = _build_engine(model)
    request = _build_answer(engine, _draw_ids(model, tokens), 1)
    engine.add(request)
    ends = []
    start = time.perf_counter()
    while not request.finished:
        engine.step()
        ends.append(tokens if request.finished else request.computed)  # a finished one has given its pages back
    seconds = time.perf_counter() - start
    read = len(ends) * count_step_bytes(model.decoder) + sum(ends) * count_cache_bytes(model)
    return Speed("prefill", 1, tokens, seconds, read, count_operations(model.decoder.config, tokens))


def measure_decode(model: LanguageModel, context: int, new_tokens: int, sequences: int = 1) -> Speed:
    """So many steps of so many sequences, each behind S tokens of its own (some more, while others read theirs)."""
    engine = _build_engine(model)
    prompts = [_draw_ids(model, context) for _ in range(sequences)]
    length = new_tokens + count_spare_tokens(model, context, sequences)
    requests = [_build_answer(engine, prompt, length) for prompt in prompts]
    for request in requests:
        engine.add(request)
    while not all(request.completion_tokens for request in requests):
        engine.step()
    seen = [len(request.token_ids) for request in requests]
    start = time.perf_counter()
    for _ in range(new_tokens):
        engine.step()
    seconds = time.perf_counter() - start
    # The step that reads the last of n tokens sees n of them.
    lengths = [length + step for length in seen for step in range(new_tokens)]
    read = new_tokens * count_step_bytes(model.decoder) + sum(lengths) * count_cache_bytes(model)
    operations = sum(count_operations(model.decoder.config, 1, length - 1) for length in lengths)
    return Speed("decode", sequences, len(lengths), seconds, read, operations)


def count_spare_tokens(model: LanguageModel, context: int, sequences: int) -> int:
    """What a sequence answers, at most, before all are decoding: a token while each chunk of the others is read."""
    return 1 + (sequences - 1) * -(-context // model.engine.runner.chunk)


def measure_rows(model: LanguageModel, context: int, rows: int, repeats: int = 8) -> float:
    """Seconds of a step that reads `rows` tokens of one sequence and gives the logits of each: the median.

    That is what verifying drafts is. S must be a whole number of pages.
    """
    engine = _build_engine(model)
    prompt = _draw_ids(model, context)
    engine.complete([engine.build_scoring(prompt, 1)])
    times = []
    for _ in range(repeats):
        request = engine.build_scoring(prompt + _draw_ids(model, rows), rows)
        start = time.perf_counter()
        engine.complete([request])
        times.append(time.perf_counter() - start)
        assert request.cached_tokens == context, "the prompt was read again"
    return statistics.median(times)


def measure_bandwidth(device: torch.device, size: int = 1 << 30) -> float:
    """Bytes a second that all threads read: the best sum of a float32 buffer of `size` bytes, beyond any cache."""
    buffer = torch.ones(size // 4, device=device)
    return size / _time_best(lambda: buffer.sum(), device)


def measure_rate(decoder: Decoder, width: int = 2048) -> float:
    """Operations a second of one square linear of the decoder's kind (width x width), with 512 rows of activations."""
    weight = decoder.model.embed_tokens.weight
    integer, bits = isinstance(decoder.get_submodule("model.layers.0.mlp.up_proj"), IntegerLinear), find_bits(decoder)
    linear: nn.Module = nn.Linear(width, width, bias=False, device=weight.device, dtype=weight.dtype)
    if bits != 16:
        linear = quantize(weight.new_empty(width, width).normal_(), bits)
    if integer:
        assert isinstance(linear, Int8Linear | Int4Linear)
        linear = IntegerLinear(linear)
    x = torch.randn(512, width, device=weight.device, dtype=weight.dtype)
    return 2 * 512 * width * width / _time_best(lambda: linear(x), weight.device)


def count_weight_bytes(decoder: Decoder) -> int:
    """Bytes of the weights as they lie in memory, a shared one once."""
    tensors = [*decoder.parameters(), *decoder.buffers()]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def count_step_bytes(decoder: Decoder) -> int:
    """Bytes of weights that a step reads: all but the embedding, of which it reads a row a token."""
    table = decoder.model.embed_tokens.weight
    shared = getattr(decoder.lm_head, "weight", None) is table
    return count_weight_bytes(decoder) - (0 if shared else table.nbytes)


def count_cache_bytes(model: LanguageModel) -> int:
    """Bytes of one token's keys and values."""
    config = model.decoder.config
    native = isinstance(model.engine.runner, NativeRunner)  # its cache is bfloat16, whatever the embeddings are
    size = 2 if native else model.decoder.model.embed_tokens.weight.element_size()
    return estimate_cache(config, 1, size)


def count_operations(config: ModelConfig, tokens: int, past: int = 0) -> int:
    """Multiplications and additions of a pass of T tokens behind S, with the head on the last one."""
    width, ffn, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    linears = width * (2 * heads + 2 * keys) + 3 * width * ffn
    pairs = tokens * past + tokens * (tokens + 1) // 2  # each token sees those before it, and itself
    layer = 2 * linears * tokens + 4 * heads * pairs  # q k and the sum of v
    return config.num_hidden_layers * layer + 2 * config.vocab_size * width


class PeakMemory:
    """The most anonymous memory that a process (None: this one) had inside of the block, sampled 50 times a second."""

    def __init__(self, process_id: int | None = None) -> None:
        self.peak = 0
        self._process_id = process_id
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            self.peak = max(self.peak, read_anonymous_memory(self._process_id))
            if self._done.wait(0.02):
                break


def read_anonymous_memory(process_id: int | None = None) -> int:
    """Bytes of a process's memory that is no file's, now (Linux); elsewhere its resident size."""
    info = psutil.Process(process_id).memory_info()
    size: int = info.rss - getattr(info, "shared", 0)
    return size


def _build_engine(model: LanguageModel) -> Engine:
    """An engine over the model's own pages, from the first one on, so that measuring again takes no more memory.

    The model's own begins anew as well, because what it remembers of those pages is about to be overwritten.
    """
    runner = model.engine.runner
    model.engine = Engine(runner, model.tokenizer)
    return Engine(runner, model.tokenizer, speculate=False)


def _draw_ids(model: LanguageModel, count: int) -> list[int]:
    return [random.randrange(model.decoder.config.vocab_size) for _ in range(count)]


def _build_answer(engine: Engine, prompt_ids: Sequence[int], new_tokens: int) -> Generation:
    """A greedy answer that no id ends."""
    return engine.build_generation(prompt_ids, SamplingOptions(max_new_tokens=new_tokens), frozenset())


def _time_best(function: Callable[[], object], device: torch.device) -> float:
    """The shortest of at least three runs that together take a third of a second, the first one not counted."""
    times: list[float] = []
    with torch.inference_mode():
        function()
        while len(times) < 3 or sum(times) < 0.3:
            _synchronize(device)
            start = time.perf_counter()
            function()
            _synchronize(device)
            times.append(time.perf_counter() - start)
    return min(times)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
