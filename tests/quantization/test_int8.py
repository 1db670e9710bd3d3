import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chuan.model.decoder import Decoder
from chuan.quantization.int8 import Int8Linear, dequantize_rows, quantize_rows
from chuan.quantization.methods import apply_quantization
from tests.support.tiny import build_tiny_config, build_tiny_decoder


def test_the_error_is_at_most_half_a_step():
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 4, 64)[:, None]
    quantized, scale = quantize_rows(weight)
    assert (quantized.dtype, scale.shape) == (torch.int8, (64, 1))
    assert (quantized.abs().amax(dim=1) == 127).all()  # each row uses its whole range
    assert ((dequantize_rows(quantized, scale) - weight).abs() <= scale * 0.5001).all()


def test_rows_of_zeros_and_extremes():
    weight = torch.zeros(3, 8)
    weight[1] = torch.tensor([3e38, -3e38, 0, 1, 2, 3, 4, 5])
    weight[2, 0] = 1e-38
    quantized, scale = quantize_rows(weight)
    assert torch.isfinite(scale).all()
    assert quantized[0].abs().sum() == 0
    assert quantized[1, :2].tolist() == [127, -127]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_is_a_linear_of_the_dequantized_weight(dtype: torch.dtype, bias: bool):
    torch.manual_seed(0)
    linear = nn.Linear(96, 40, bias=bias)
    layer = Int8Linear(*quantize_rows(linear.weight.detach()), linear.bias.detach().to(dtype) if bias else None)
    x = torch.randn(2, 5, 96).to(dtype)
    expected = F.linear(x.float(), dequantize_rows(layer.weight, layer.weight_scale), linear.bias)
    error = (layer(x).float() - expected).abs().max() / expected.abs().max()
    assert layer(x).dtype == dtype
    assert error < (1e-5 if dtype == torch.float32 else 1e-2)


@torch.inference_mode()
def test_it_replaces_the_layers_linears_and_nothing_else():
    decoder = build_tiny_decoder(build_tiny_config(attention_bias=True))
    ids = torch.randint(0, 307, (1, 30), generator=torch.Generator().manual_seed(1))
    before = decoder(ids)
    apply_quantization(decoder, 8)
    replaced = [name for name, module in decoder.named_modules() if isinstance(module, Int8Linear)]
    assert len(replaced) == 7 * 2
    assert [name for name, module in decoder.named_modules() if isinstance(module, nn.Linear)] == ["lm_head"]
    after = decoder(ids)
    similarity = F.cosine_similarity(after, before, dim=-1)
    assert similarity.mean() > 0.999
    assert similarity.min() > 0.99
    apply_quantization(decoder, 8)  # a second time changes nothing
    assert torch.equal(decoder(ids), after)


def test_on_meta_it_only_shapes():
    with torch.device("meta"):
        decoder = Decoder(build_tiny_config())
        apply_quantization(decoder, 8)
    shapes = {name: tuple(b.shape) for name, b in decoder.named_buffers() if "layers.0.mlp.down_proj" in name}
    assert shapes == {
        "model.layers.0.mlp.down_proj.weight": (48, 80),
        "model.layers.0.mlp.down_proj.weight_scale": (48, 1),
    }
