"""The loss and its gradients against torch's and transformers' own; documents in a row against documents alone."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import chuan.training.loss as loss_module
from chuan.training.blocks import attend_blocks
from chuan.training.loss import LanguageModelLoss, LossSettings, count_slice, cross_entropy
from chuan.training.packed import (
    CpuAttention,
    FlexAttention,
    build_block_mask,
    build_packed_attention,
    count_positions,
)
from chuan.training.parallel import apply_checkpointing, apply_compile
from chuan.training.rows import IGNORED
from tests.support.tiny import build_tiny_config, build_tiny_decoder, build_tiny_llama


@torch.no_grad()
def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("max_z", [0.0, 0.01])
def test_cross_entropy_is_torchs_in_slices(monkeypatch, max_z):
    monkeypatch.setattr(loss_module, "CPU_LOGITS", 300)  # three positions at a time
    torch.manual_seed(0)
    hidden = torch.randn(20, 16, requires_grad=True)
    weight = torch.randn(100, 16, requires_grad=True)
    targets = torch.randint(0, 100, (20,))
    logits = hidden @ weight.T
    nll = F.cross_entropy(logits, targets, reduction="sum")
    expected = nll + max_z * logits.max(dim=-1).values.square().sum()
    grads = torch.autograd.grad(expected / 7, [hidden, weight])
    total, found_nll = cross_entropy(hidden, weight, targets, max_z)
    found = torch.autograd.grad(total / 7, [hidden, weight])
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(found_nll, nll, rtol=1e-5, atol=0)
    for ours, theirs in zip(found, grads, strict=True):
        assert relative(ours, theirs) < 1e-5


def test_no_target_gives_no_loss_and_no_gradient():
    hidden = torch.randn(0, 8, requires_grad=True)
    weight = torch.randn(10, 8, requires_grad=True)
    total, _ = cross_entropy(hidden, weight, torch.zeros(0, dtype=torch.long))
    total.backward()
    assert total == 0
    assert not weight.grad.any()


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 2, "tie_word_embeddings": True}])
def test_gradients_are_those_of_transformers(changes):
    theirs, ours = build_tiny_llama(build_tiny_config(**changes))
    model = LanguageModelLoss(ours, LossSettings())
    torch.manual_seed(1)
    tokens = torch.randint(0, 307, (3, 25))
    labels = tokens.clone()
    labels[0, :10] = IGNORED
    theirs.train()
    expected = theirs(tokens, labels=labels).loss
    expected.backward()
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    total, _ = model(tokens, torch.zeros_like(tokens), targets)
    found = total / (targets != IGNORED).sum()
    found.backward()
    assert abs(found.item() / expected.item() - 1) < 1e-5
    gradients = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        assert relative(gradients[name].grad, parameter.grad) < 1e-5, name


def test_a_normalized_head_is_one_of_unit_rows():
    _, ours = build_tiny_llama(build_tiny_config())
    model = LanguageModelLoss(ours, LossSettings(normalized_head=True))
    tokens = torch.randint(0, 307, (2, 12))
    total, _ = model(tokens, torch.zeros_like(tokens), tokens)
    (by_ours,) = torch.autograd.grad(total, [ours.lm_head.weight])
    hidden = ours.model.norm(ours.hidden_states(tokens))
    expected = F.cross_entropy(F.linear(hidden, F.normalize(ours.lm_head.weight)).flatten(0, 1), tokens.flatten(),
                               reduction="sum")  # fmt: skip
    (by_torch,) = torch.autograd.grad(expected, [ours.lm_head.weight])
    assert relative(by_ours, by_torch) < 1e-5


def packed_row() -> tuple[Tensor, Tensor, Tensor, list[slice]]:
    """Three documents in a row of 30."""
    torch.manual_seed(2)
    tokens = torch.randint(0, 307, (1, 30))
    documents = torch.tensor([[0] * 7 + [1] * 13 + [2] * 10])
    targets = torch.roll(tokens, -1, 1)
    targets[0, [6, 19, 29]] = IGNORED
    return tokens, documents, targets, [slice(0, 7), slice(7, 20), slice(20, 30)]


def test_packed_is_unpacked():
    _, ours = build_tiny_llama(build_tiny_config())
    model = LanguageModelLoss(ours, LossSettings())
    tokens, documents, targets, parts = packed_row()
    total, _ = model(tokens, documents, targets)
    together = torch.autograd.grad(total, list(ours.parameters()))
    alone = [
        model(tokens[:, part], torch.zeros_like(tokens[:, part]), targets[:, part])[0] for part in parts
    ]  # fmt: skip
    total_alone = torch.stack(alone).sum()
    separate = torch.autograd.grad(total_alone, list(ours.parameters()))
    assert abs(total.item() / total_alone.item() - 1) < 1e-5
    for a, b in zip(together, separate, strict=True):
        assert relative(a, b) < 1e-5


def test_a_document_does_not_see_its_neighbour():
    _, ours = build_tiny_llama(build_tiny_config())
    tokens, documents, _, parts = packed_row()
    changed = tokens.clone()
    changed[0, parts[0]] = torch.randint(0, 307, (7,))
    outputs = [
        ours.hidden_states(ids, build_packed_attention(documents), positions=count_positions(documents))
        for ids in (tokens, changed)
    ]
    assert not torch.equal(outputs[0][0, parts[0]], outputs[1][0, parts[0]])
    for part in parts[1:]:
        assert torch.equal(outputs[0][0, part], outputs[1][0, part])


def test_positions_begin_anew_with_each_document():
    documents = torch.tensor([[3, 3, 4, 4, 4, 6], [0, 0, 0, 0, 0, 0]])
    assert count_positions(documents).tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5]]


def test_documents_of_other_lengths_are_not_compiled_anew():
    """Each step has its own; a compiled layer must not know them."""
    config = build_tiny_config()
    decoder = build_tiny_decoder(config)
    model = LanguageModelLoss(decoder, LossSettings())
    apply_compile(model, torch.float32)
    tokens, targets = torch.randint(0, config.vocab_size, (2, 2, 24))

    def run(width: int) -> None:
        documents = (torch.arange(24) // width).expand(2, 24)
        model(tokens, documents, targets)[0].backward()

    run(9)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for width in (7, 5, 11):
            run(width)


@torch.no_grad()
def test_masks_of_a_gpu_are_those_of_a_cpu_and_are_not_compiled_anew(monkeypatch):
    """FlexAttention, whose way back alone wants a GPU, inside of compiled layers."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    config = build_tiny_config(hidden_size=64, num_key_value_heads=2)
    decoder = build_tiny_decoder(config)
    tokens = torch.randint(0, config.vocab_size, (2, 256))
    documents = [(torch.arange(256) // width).expand(2, 256) for width in (100, 30, 170, 128)]
    expected = [decoder.hidden_states(tokens, build_packed_attention(numbers)) for numbers in documents]
    apply_compile(LanguageModelLoss(decoder, LossSettings()), torch.float32)
    first = decoder.hidden_states(tokens, FlexAttention(build_block_mask(documents[0])))
    assert relative(first, expected[0]) < 1e-5
    with torch._dynamo.config.patch(error_on_recompile=True):
        for numbers, hidden in zip(documents[1:], expected[1:], strict=True):
            found = decoder.hidden_states(tokens, FlexAttention(build_block_mask(numbers)))
            assert relative(found, hidden) < 1e-5


@pytest.mark.parametrize(("tokens", "heads"), [(2, 4), (7, 2), (24, 4), (130, 1)])
def test_attention_in_blocks_is_torchs_under_a_mask(tokens, heads):
    torch.manual_seed(0)
    shapes = ((2, 4, tokens, 8), (2, heads, tokens, 8), (2, heads, tokens, 8))
    exact = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    documents = torch.stack([torch.arange(tokens) // 5, torch.arange(tokens) // 60])
    seen = (documents[:, :, None] == documents[:, None, :]) & torch.ones(tokens, tokens, dtype=torch.bool).tril()
    grad = torch.randn(shapes[0], dtype=torch.float64)
    output = F.scaled_dot_product_attention(*exact, attn_mask=seen[:, None], enable_gqa=True)
    expected = [output, *torch.autograd.grad(output, exact, grad)]
    inputs = [tensor.detach().float().requires_grad_() for tensor in exact]
    output = attend_blocks(*inputs, documents)
    for found, wanted in zip([output, *torch.autograd.grad(output, inputs, grad.float())], expected, strict=True):
        assert relative(found, wanted) < 1e-6


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_bfloat16_is_as_near_to_float32_as_eager(monkeypatch, checkpointing):
    """Attention in blocks and compiled logits, which float32 does not have; other documents are not compiled anew."""
    config = build_tiny_config(num_key_value_heads=2)
    exact, eager, compiled = (LanguageModelLoss(build_tiny_decoder(config), LossSettings(max_z=0.001)) for _ in "123")
    eager.bfloat16()
    if checkpointing:
        apply_checkpointing(compiled)
    apply_compile(compiled.bfloat16(), torch.bfloat16)
    tokens, targets = torch.randint(0, config.vocab_size, (2, 4, 24))

    def compute(model: LanguageModelLoss, documents: Tensor) -> dict[str, Tensor]:
        total, _ = model(tokens, documents, targets)
        kinds: dict[str, list[Tensor]] = {}
        for name, grad in zip(
            dict(model.named_parameters()), torch.autograd.grad(total, model.parameters()), strict=True
        ):
            kinds.setdefault(name.split(".")[-2], []).append(grad.flatten())
        return {"total": total} | {kind: torch.cat(grads) for kind, grads in kinds.items()}

    totals = set()
    for width in (9, 7, 24):
        documents = (torch.arange(24) // width).expand(4, 24)
        wanted, plain = (compute(model, documents) for model in (exact, eager))
        with monkeypatch.context() as patch, torch._dynamo.config.patch(error_on_recompile=bool(totals)):
            patch.setattr(CpuAttention, "_attend_apart", None)  # blocks take its place
            found = compute(compiled, documents)
            with torch.no_grad():
                assert totals or relative(compiled(tokens, documents, targets)[0], wanted["total"]) < 2e-3
        for name, expected in wanted.items():
            assert relative(found[name].float(), expected) < 1.5 * relative(plain[name].float(), expected) + 2e-3, name
        totals.add(float(wanted["total"]))
    assert len(totals) == 3  # documents matter


def test_slices_of_logits():
    assert count_slice(vocabulary=64000, logits=1 << 27) == 2048
    assert count_slice(vocabulary=100, logits=300) == 3
    assert count_slice(vocabulary=100, logits=50) == 1
