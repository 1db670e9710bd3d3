"""How fast llama.cpp is: the peer's side of `cpu_inference.py`, in a Python that has llama-cpp-python.

Its low-level API with llama.cpp's own defaults (n_batch 2048, n_ubatch 512, flash attention chosen by itself, weights
mapped and repacked as it likes), and as many threads as there are cores. Times are of `llama_decode` and the choice of
the best token, as an answer needs them.
"""

from __future__ import annotations

import os
import random
import time
from typing import Any

import llama_cpp
import numpy as np
from sides import serve


class Engine:
    """The loaded file, and a context made to measure for each question."""

    def __init__(self) -> None:
        llama_cpp.llama_backend_init()
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, None)
        self._model: Any = None
        self._context: Any = None

    def load(self, path: str) -> dict[str, Any]:
        """Opens the file, and answers with a first token to a prompt of one."""
        self.unload()
        start = time.perf_counter()
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"cannot open {path}")
        self._vocabulary = llama_cpp.llama_n_vocab(llama_cpp.llama_model_get_vocab(self._model))
        self._open(tokens=64)
        self._decode([(1, 0, 0, True)])
        return {"seconds": time.perf_counter() - start}

    def unload(self) -> dict[str, Any]:
        self._close()
        if self._model:
            llama_cpp.llama_model_free(self._model)
        self._model = None
        return {}

    def versions(self) -> dict[str, Any]:
        features = llama_cpp.llama_print_system_info().decode()
        return {"llama-cpp-python": llama_cpp.__version__, "features": features.strip()}

    def prefill(self, tokens: int) -> dict[str, Any]:
        """A prompt, to the choice of the first token."""
        self._open(tokens + 1)
        ids = self._draw(tokens)
        start = time.perf_counter()
        self._decode([(token, position, 0, position == tokens - 1) for position, token in enumerate(ids)])
        return self._close_with(time.perf_counter() - start, tokens)

    def decode(self, context: int, new_tokens: int, sequences: int = 1) -> dict[str, Any]:
        """So many sequences together, each behind its own context; tokens a second are all of theirs."""
        self._open((context + new_tokens + 1) * sequences, sequences)
        for sequence in range(sequences):
            ids = self._draw(context)
            self._decode([(token, position, sequence, position == context - 1) for position, token in enumerate(ids)])
        tokens = self._draw(sequences)
        tokens = self._decode([(token, context, row, True) for row, token in enumerate(tokens)])  # warm
        start = time.perf_counter()
        for step in range(new_tokens - 1):
            tokens = self._decode([(token, context + 1 + step, row, True) for row, token in enumerate(tokens)])
        return self._close_with(time.perf_counter() - start, (new_tokens - 1) * sequences)

    def _draw(self, count: int) -> list[int]:
        rng = random.Random(count)
        return [rng.randrange(300, self._vocabulary) for _ in range(count)]

    def _open(self, tokens: int, sequences: int = 1) -> None:
        self._close()
        parameters = llama_cpp.llama_context_default_params()
        # Each sequence has an equal share of the cells, in steps of 256.
        parameters.n_ctx = sequences * (-(-tokens // sequences // 256) * 256)
        parameters.n_seq_max = sequences
        parameters.n_threads = parameters.n_threads_batch = os.cpu_count() or 1
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise RuntimeError(f"no context of {tokens} tokens")

    def _close(self) -> None:
        if self._context:
            llama_cpp.llama_free(self._context)
        self._context = None

    def _close_with(self, seconds: float, tokens: int) -> dict[str, Any]:
        self._close()
        return {"seconds": seconds, "tokens": tokens}

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Rows of (token, position, sequence, wants logits), in batches of 2048; the best next tokens."""
        best = []
        for first in range(0, len(rows), 2048):
            part = rows[first : first + 2048]
            batch = llama_cpp.llama_batch_init(len(part), 0, 1)
            batch.n_tokens = len(part)
            for index, (token, position, sequence, wanted) in enumerate(part):
                batch.token[index], batch.pos[index] = token, position
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
                batch.logits[index] = wanted
            if llama_cpp.llama_decode(self._context, batch) != 0:
                raise RuntimeError("llama_decode failed")
            for index, row in enumerate(part):
                if row[3]:
                    best.append(self._choose(index))
            llama_cpp.llama_batch_free(batch)
        return best

    def _choose(self, index: int) -> int:
        # numpy's argmax, because llama.cpp's greedy sampler first copies the row into a list of candidates.
        logits = llama_cpp.llama_get_logits_ith(self._context, index)
        return int(np.ctypeslib.as_array(logits, shape=(self._vocabulary,)).argmax())


if __name__ == "__main__":
    engine = Engine()
    serve(
        {
            "load": engine.load,
            "unload": engine.unload,
            "versions": engine.versions,
            "prefill": engine.prefill,
            "decode": engine.decode,
        }
    )
