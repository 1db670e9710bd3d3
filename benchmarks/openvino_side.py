"""How fast OpenVINO is on 8-bit weights: the peer's side of `cpu_inference.py`, in a Python that has openvino.

A Llama of random weights, written in OpenVINO's operations as its own exporter writes one: int8 weights with a scale an
output (Convert, Multiply: "compressed"), which its CPU plugin multiplies with dynamically quantized activations; keys
and values as state, behind the gather of a beam; scaled dot-product attention; the head for the last token alone. Only
some of the layers are built, and a model of none, so that the time of the whole can be told: head + layers / built x
(all - head). Precisions of activations and of the cache are the plugin's own choice.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import openvino
from openvino import opset13 as ops
from openvino.op.util import Variable, VariableInfo
from sides import serve

# What its users may set: inputs that share an activation's scale (-1: all of a token's), and the float type.
GROUPS, PRECISIONS = (32, 128, -1), ("f32", "bf16")
_EMBEDDED = 1024


class Builder:
    """A graph of `layers` layers of the shape that `config` (Hugging Face's names) gives."""

    def __init__(self, config: dict[str, Any], layers: int) -> None:
        self.width, self.ffn = config["hidden_size"], config["intermediate_size"]
        self.heads, self.vocabulary = config["num_attention_heads"], config["vocab_size"]
        self.head_width, self.eps = self.width // self.heads, config["rms_norm_eps"]
        self.layers = layers
        self.sinks: list[Any] = []
        self._rng = np.random.default_rng(0)

    def build(self) -> openvino.Model:
        """Inputs: ids (B, T), positions (B, T), mask (B, 1, T, S) and beam (B,). Output: logits (B, 1, V)."""
        ids = self._input("ids", [-1, -1], np.int64)
        positions = self._input("positions", [-1, -1], np.int64)
        mask = self._input("mask", [-1, 1, -1, -1], np.float32)
        beam = self._input("beam", [-1], np.int32)
        # A row a token is all that is read of an embedding: a short one is as fast, and leaves memory to the others.
        table = self._weight(_EMBEDDED, self.width)
        x = ops.gather(table, ids, np.int64(0))
        rotary = self._rotary(positions)
        self._batch = ops.gather(ops.shape_of(ids), np.array([0]), np.int64(0))
        for layer in range(self.layers):
            x = ops.add(x, self._attention(self._norm(x), rotary, mask, beam, layer))
            h = self._norm(x)
            gate = ops.swish(self._linear(h, self.ffn))
            x = ops.add(x, self._linear(ops.multiply(gate, self._linear(h, self.ffn)), self.width))
        last = ops.slice(x, np.array([-1]), np.array([2**31 - 1]), np.array([1]), np.array([1]))
        logits = self._linear(self._norm(last), self.vocabulary)
        return openvino.Model([ops.result(logits)], self.sinks, [ids, positions, mask, beam])

    def _input(self, name: str, shape: list[int], dtype: Any) -> Any:
        parameter = ops.parameter(openvino.PartialShape(shape), dtype, name=name)
        parameter.output(0).set_names({name})
        return parameter

    def _weight(self, rows: int, columns: int) -> Any:
        codes = self._rng.integers(-127, 128, (rows, columns), dtype=np.int8)
        # As other int8 weights of a deviation of 0.02 are: the largest of a row is about 0.08.
        scale = np.full((rows, 1), 0.08 / 127, dtype=np.float16)
        product = ops.multiply(ops.convert(ops.constant(codes), np.float16), ops.constant(scale))
        return ops.convert(product, np.float32)

    def _linear(self, x: Any, outputs: int) -> Any:
        inputs = self.ffn if outputs == self.width and x.get_output_partial_shape(0)[2] == self.ffn else self.width
        return ops.matmul(x, self._weight(outputs, inputs), False, True)

    def _norm(self, x: Any) -> Any:
        mean = ops.reduce_mean(ops.power(x, np.float32(2)), np.array([-1]), True)
        root = ops.divide(np.float32(1), ops.sqrt(ops.add(mean, np.float32(self.eps))))
        return ops.multiply(ops.constant(np.ones((1, 1, self.width), np.float32)), ops.multiply(x, root))

    def _rotary(self, positions: Any) -> tuple[Any, Any]:
        frequencies = 10000.0 ** -(np.arange(0, self.head_width, 2, dtype=np.float32) / self.head_width)
        times = ops.convert(ops.unsqueeze(positions, np.int64(2)), np.float32)
        angles = ops.multiply(times, ops.constant(frequencies.reshape(1, 1, -1)))
        angles = ops.unsqueeze(ops.concat([angles, angles], -1), np.int64(1))  # (B, 1, T, D)
        return ops.cos(angles), ops.sin(angles)

    def _rotate(self, x: Any, rotary: tuple[Any, Any]) -> Any:
        half = self.head_width // 2
        step, axis = np.array([1]), np.array([3])
        left = ops.slice(x, np.array([0]), np.array([half]), step, axis)
        right = ops.slice(x, np.array([half]), np.array([2**31 - 1]), step, axis)
        turned = ops.concat([ops.multiply(right, np.float32(-1)), left], -1)
        return ops.add(ops.multiply(x, rotary[0]), ops.multiply(turned, rotary[1]))

    def _attention(self, x: Any, rotary: tuple[Any, Any], mask: Any, beam: Any, layer: int) -> Any:
        split = np.array([0, 0, self.heads, self.head_width])
        q, k, v = (
            ops.transpose(ops.reshape(self._linear(x, self.width), split, True), np.array([0, 2, 1, 3]))
            for _ in range(3)
        )
        q, k = self._rotate(q, rotary), self._rotate(k, rotary)
        k, v = self._remember(k, beam, f"keys.{layer}"), self._remember(v, beam, f"values.{layer}")
        out = ops.scaled_dot_product_attention(q, k, v, mask, causal=False)
        joined = ops.reshape(ops.transpose(out, np.array([0, 2, 1, 3])), np.array([0, 0, self.width]), True)
        return self._linear(joined, self.width)

    def _remember(self, new: Any, beam: Any, name: str) -> Any:
        info = VariableInfo()
        info.data_shape = openvino.PartialShape([-1, self.heads, -1, self.head_width])
        info.data_type, info.variable_id = openvino.Type.f32, name
        variable = Variable(info)
        shape = ops.concat([self._batch, np.array([self.heads, 0, self.head_width])], 0)
        old = ops.read_value(ops.broadcast(ops.constant(np.float32(0)), shape), variable)
        both = ops.concat([ops.gather(old, beam, np.int64(0)), new], -2)
        self.sinks.append(ops.assign(both, variable))
        return both


class Peer:
    """The two compiled models."""

    def tune(self, config: dict[str, Any], tokens: int, context: int, sequences: int) -> dict[str, Any]:
        """The settings with the fastest prefill, and those with the fastest decoding together, tried on one layer."""
        tried = []
        core = openvino.Core()
        kinds = [
            kind
            for kind in PRECISIONS
            if kind == "f32" or "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        ]
        model = Builder(config, 1).build()
        for precision, group in itertools.product(kinds, GROUPS):
            request = core.compile_model(model, "CPU", _options(group, precision)).create_infer_request()
            self._time_prefill(request, tokens)
            prefill = min(self._time_prefill(request, tokens) for _ in range(5))
            decode = min(self._time_decode(request, context, 4, sequences) for _ in range(3))
            tried.append({"group": group, "precision": precision, "prefill": prefill, "decode": decode})
        best = {phase: min(tried, key=lambda trial: trial[phase]) for phase in ("prefill", "decode")}
        chosen = {phase: {key: trial[key] for key in ("group", "precision")} for phase, trial in best.items()}
        return {**chosen, "tried": tried}

    def load(self, config: dict[str, Any], layers: int, group: int, precision: str) -> dict[str, Any]:
        """Builds and compiles; `layers` of the configuration's."""
        self.unload()
        self._all, self._built = config["num_hidden_layers"], layers
        core = openvino.Core()
        start = time.perf_counter()
        self._some, self._none = (
            core.compile_model(Builder(config, count).build(), "CPU", _options(group, precision)).create_infer_request()
            for count in (layers, 0)
        )
        return {"seconds": time.perf_counter() - start}

    def unload(self) -> dict[str, Any]:
        self._some = self._none = None
        return {}

    def versions(self) -> dict[str, Any]:
        return {"openvino": openvino.__version__}

    def prefill(self, tokens: int) -> dict[str, Any]:
        """A prompt, to the choice of the first token."""
        return self._scale(tokens, [self._time_prefill(request, tokens) for request in (self._some, self._none)])

    def decode(self, context: int, new_tokens: int, sequences: int = 1) -> dict[str, Any]:
        """So many sequences together; tokens a second are all of theirs."""
        steps = new_tokens - 1
        times = [self._time_decode(request, context, steps, sequences) for request in (self._some, self._none)]
        return self._scale(steps * sequences, times)

    def _scale(self, tokens: int, times: list[float]) -> dict[str, Any]:
        some, none = times
        whole = none + (some - none) * self._all / self._built
        return {"seconds": whole, "tokens": tokens, "measured": some, "head": none}

    def _time_prefill(self, request: Any, tokens: int) -> float:
        request.reset_state()
        inputs = self._inputs(1, tokens, 0)
        start = time.perf_counter()
        self._run(request, inputs)
        return time.perf_counter() - start

    def _time_decode(self, request: Any, context: int, steps: int, sequences: int) -> float:
        request.reset_state()
        self._run(request, self._inputs(sequences, context, 0))
        self._run(request, self._inputs(sequences, 1, context))  # warm
        start = time.perf_counter()
        for step in range(steps):
            self._run(request, self._inputs(sequences, 1, context + 1 + step))
        return time.perf_counter() - start

    def _inputs(self, batch: int, tokens: int, past: int) -> dict[str, np.ndarray]:
        ids = np.random.default_rng(past).integers(0, _EMBEDDED, (batch, tokens))
        positions = np.broadcast_to(np.arange(past, past + tokens), (batch, tokens))
        later = np.triu(np.full((tokens, past + tokens), -np.inf, np.float32), past + 1)
        mask = np.broadcast_to(later, (batch, 1, tokens, past + tokens))
        beam = np.arange(batch, dtype=np.int32)
        return {"ids": ids, "positions": positions, "mask": np.ascontiguousarray(mask), "beam": beam}

    def _run(self, request: Any, inputs: dict[str, np.ndarray]) -> np.ndarray:
        wanted = request.get_compiled_model().inputs
        names = {name for port in wanted for name in port.get_names()}
        request.infer({name: value for name, value in inputs.items() if name in names}, share_inputs=True)
        best: np.ndarray = request.get_output_tensor(0).data.argmax(axis=-1)
        return best


def _options(group: int, precision: str) -> dict[str, str]:
    size = 2**64 - 1 if group == -1 else group
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(size),
        "INFERENCE_PRECISION_HINT": precision,
    }


if __name__ == "__main__":
    peer = Peer()
    serve(
        {
            "tune": peer.tune,
            "load": peer.load,
            "unload": peer.unload,
            "versions": peer.versions,
            "prefill": peer.prefill,
            "decode": peer.decode,
        }
    )
