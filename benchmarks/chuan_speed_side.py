"""How fast Chuan is: our side of `cpu_inference.py`, by the functions of `chuan bench`."""

from __future__ import annotations

import gc
import importlib.metadata
import time
from typing import Any

import torch
from sides import serve

from chuan.inference import bench
from chuan.inference.load import load
from chuan.quantization.methods import find_bits


class Ours:
    """The loaded model."""

    def __init__(self) -> None:
        self._model: Any = None

    def load(self, path: str, bits: int | None = None) -> dict[str, Any]:
        """Opens the model, and answers with a first token to a prompt of one."""
        self.unload()
        start = time.perf_counter()
        self._model = load(path, bits=bits, device="cpu")  # type: ignore[arg-type]
        loaded = time.perf_counter() - start
        bench.measure_prefill(self._model, 1)
        seconds = time.perf_counter() - start
        self._model.engine.runner.finish_loading()
        return {"seconds": seconds, "loaded": loaded, **self._describe()}

    def unload(self) -> dict[str, Any]:
        self._model = None
        gc.collect()
        return {}

    def versions(self) -> dict[str, Any]:
        names = ("chuan", "torch", "transformers")
        capabilities = torch.cpu.get_capabilities()
        features = [name for name, there in capabilities.items() if there is True]
        return {"features": features, **{name: importlib.metadata.version(name) for name in names}}

    def limits(self) -> dict[str, Any]:
        """The machine's own, in the model's arithmetic."""
        rate = bench.measure_rate(self._model.decoder)
        return {"bandwidth": bench.measure_bandwidth(torch.device("cpu")), "rate": rate}

    def prefill(self, tokens: int) -> dict[str, Any]:
        return self._give(bench.measure_prefill(self._model, tokens))

    def decode(self, context: int, new_tokens: int, sequences: int = 1) -> dict[str, Any]:
        return self._give(bench.measure_decode(self._model, context, new_tokens, sequences))

    def rows(self, context: int, rows: int) -> dict[str, Any]:
        return {"seconds": bench.measure_rows(self._model, context, rows)}

    def memory(self, context: int, sequences: int = 1) -> dict[str, Any]:
        """Fills the contexts; anonymous memory at its peak, beside what the model is made of."""
        with bench.PeakMemory() as memory:
            bench.measure_decode(self._model, context, 2, sequences)
        return {"peak": memory.peak, **self._describe()}

    def _describe(self) -> dict[str, Any]:
        decoder = self._model.decoder
        weight = decoder.model.embed_tokens.weight
        return {
            "weights": bench.count_weight_bytes(decoder),
            "cache": bench.count_cache_bytes(self._model),
            "dtype": str(weight.dtype).removeprefix("torch."),
            "bits": find_bits(decoder),
        }

    def _give(self, speed: bench.Speed) -> dict[str, Any]:
        return {"seconds": speed.seconds, "tokens": speed.tokens, "bandwidth": speed.bandwidth, "rate": speed.rate}


if __name__ == "__main__":
    ours = Ours()
    serve(
        {
            "load": ours.load,
            "unload": ours.unload,
            "versions": ours.versions,
            "limits": ours.limits,
            "prefill": ours.prefill,
            "decode": ours.decode,
            "rows": ours.rows,
            "memory": ours.memory,
        }
    )
