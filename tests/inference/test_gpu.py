"""The kernels of a GPU, by Triton's interpreter: the same code, on this processor."""

import importlib

import pytest
import torch

from chuan.inference.pages import count_pages
from chuan.inference.runner import Piece, TorchRunner
from chuan.model.config import ModelConfig
from chuan.model.decoder import Decoder
from chuan.quantization.int4 import Int4Linear, quantize_groups
from chuan.quantization.int8 import Int8Linear
from chuan.quantization.methods import apply_quantization

pytest.importorskip("triton", reason="Triton comes for Linux alone")
linears = importlib.import_module("chuan.inference.gpu.linears")
GpuRunner = importlib.import_module("chuan.inference.gpu.runner").GpuRunner


def arrange(x: torch.Tensor, planes: int) -> torch.Tensor:
    """Columns in planes: 8 w + i goes to i K / 8 + w."""
    return x.unflatten(1, (-1, planes)).transpose(1, 2).flatten(1)


@pytest.mark.parametrize("rows", [1, 3, 16, 40])
@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
@pytest.mark.parametrize(("outputs", "width"), [(48, 64), (70, 576), (16, 1088)])
def test_products(kind: type, rows: int, outputs: int, width: int):
    torch.manual_seed(0)
    linear = kind.quantize(torch.randn(outputs, width))
    x = torch.randn(rows, width)
    expected = x.double() @ linear.dequantize().double().T
    given = arrange(x, 8 if kind is Int4Linear else 4)
    exactness = {"rtol": 1e-5, "atol": 1e-3 if rows == 1 else 1e-4}
    torch.testing.assert_close(linears.multiply(given, linear).double(), expected, **exactness)
    parts = linears.multiply_in_parts(given, linear)
    assert len(parts) == (1 if rows == 1 else 4)
    torch.testing.assert_close(parts.double().sum(0), expected, **exactness)


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("rows", [1, 5])
def test_groups_and_widening(rows: int, group: int):
    torch.manual_seed(0)
    linear = Int4Linear(*quantize_groups(torch.randn(24, 384), group), 384)
    x = torch.randn(rows, 384)
    y = linears.multiply(arrange(x, 8), linear)
    torch.testing.assert_close(y, x @ linear.dequantize().T, rtol=1e-5, atol=1e-3)
    assert torch.equal(linears.widen(linear, torch.float32), linear.dequantize())


def build_decoder(bits: int, **changes) -> Decoder:
    torch.manual_seed(1)
    shape = {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
    }
    decoder = Decoder(ModelConfig(**{**shape, **changes}))
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if bits < 16:
        apply_quantization(decoder, bits)
    return decoder.requires_grad_(False)


class Plain:
    """A graph that is not captured: a pass is computed as it comes."""

    def __init__(self, runner, splits: int) -> None:
        self.runner, self.splits = runner, splits

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        return self.runner._compute(batch, self.splits)


@pytest.mark.parametrize(
    ("bits", "changes"),
    [
        (16, {}),
        (8, {}),
        (4, {}),
        (8, {"num_key_value_heads": 4}),
        (4, {"attention_bias": True, "mlp_bias": True}),
        (16, {"attention_bias": True, "head_dim": 24}),
    ],
)
def test_a_runner_gives_what_the_plain_one_gives(monkeypatch, bits: int, changes: dict):
    assert GpuRunner.takes(build_decoder(bits, **changes))
    monkeypatch.setattr(GpuRunner, "_prepare", lambda self, rows, splits: Plain(self, splits))
    plain, ours = TorchRunner(build_decoder(bits, **changes), 24), GpuRunner(build_decoder(bits, **changes), 24)
    ids = torch.randint(0, 96, (1000,)).tolist()
    pages = {"long": list(range(14)), "short": [20, 17]}
    steps = [
        [Piece(ids[:700], 0, pages["long"][: count_pages(700)], 1)],  # many rows: the plain way
        [Piece(ids[700:705], 700, pages["long"][:12], 5), Piece(ids[:59], 0, pages["short"][:1], 0)],  # 64
        [Piece(ids[705:706], 705, pages["long"][:12], 1), Piece(ids[59:66], 59, pages["short"], 7)],
        [Piece(ids[66:67], 66, pages["short"], 1)],
        [Piece(ids[67:69], 67, pages["short"], 0)],
    ]
    few = []
    run_few = GpuRunner._run_few
    monkeypatch.setattr(GpuRunner, "_run_few", lambda self, pieces: few.append(pieces) or run_few(self, pieces))
    for pieces in steps:
        torch.testing.assert_close(ours.run(pieces), plain.run(pieces), rtol=1e-4, atol=1e-3)
    assert few == steps[1:]
    for runner in (plain, ours):
        runner.copy_page(20, 21)
    last = [Piece(ids[69:70], 69, [21, 17], 1)]
    torch.testing.assert_close(ours.run(last), plain.run(last), rtol=1e-4, atol=1e-3)


def test_the_decoder_keeps_its_weights():
    for bits in (16, 8, 4):
        before = build_decoder(bits, attention_bias=True).state_dict()
        decoder = build_decoder(bits, attention_bias=True)
        GpuRunner(decoder, 8)
        after = decoder.state_dict()
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            torch.testing.assert_close(after[name], tensor, rtol=0, atol=0)


def test_a_runner_of_a_joined_decoder_and_what_is_written_of_it():
    decoder = build_decoder(4)
    GpuRunner(decoder, 8)
    assert GpuRunner.takes(decoder)
    assert type(decoder.model.layers[0].mlp.up_proj.take_rows(slice(8, 24))) is Int4Linear
    x = torch.randn(3, 64)
    expected = build_decoder(4).model.layers[0].mlp(x)
    torch.testing.assert_close(decoder.model.layers[0].mlp(x), expected, rtol=0, atol=0)


def test_what_is_trained_stays_where_it_is():
    decoder = build_decoder(16)
    decoder.lm_head.weight.requires_grad_(True)
    assert not GpuRunner.takes(decoder)


def test_what_the_kernels_do_not_know_is_left_to_the_plain_runner():
    mixed = build_decoder(8)
    layer = mixed.model.layers[1].mlp
    layer.up_proj = Int4Linear.quantize(layer.up_proj.dequantize())
    assert not GpuRunner.takes(mixed)
