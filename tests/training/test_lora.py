"""Adapters, with PEFT as the oracle: the same function, the same gradients, files that each opens of the other."""

import copy
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import chuan
from chuan.checkpoints.checkpoint import load_decoder
from chuan.errors import ChuanError
from chuan.inference.load import open_checkpoint
from chuan.inference.merge import merge
from chuan.model.decoder import Decoder
from chuan.quantization.linear import QuantizedLinear
from chuan.training.lora import LoraSettings, apply_lora, write_adapter
from chuan.training.loss import LanguageModelLoss, LossSettings
from tests.support.folders import build_baichuan_twin, write_baichuan_folder, write_llama_folder
from tests.support.loading import CPU, build_ids
from tests.support.tiny_tokenizer import train_tiny_sentencepiece

SETTINGS = LoraSettings(rank=4, alpha=8.0)


def build(base: Path, settings: LoraSettings = SETTINGS) -> Decoder:
    """The base with an adapter that already changes something."""
    decoder = load_decoder(open_checkpoint(base), torch.float32, CPU, settings.bits)
    torch.manual_seed(0)
    apply_lora(decoder, settings)
    for name, parameter in decoder.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.1)
    return decoder


def pairs_of(decoder: Decoder) -> dict[str, torch.Tensor]:
    return {name: parameter for name, parameter in decoder.named_parameters() if parameter.requires_grad}


def save(decoder: Decoder, base: Path, settings: LoraSettings = SETTINGS) -> Path:
    folder = base.parent / "adapter"
    shutil.rmtree(folder, ignore_errors=True)
    weights = {name: parameter.detach() for name, parameter in pairs_of(decoder).items()}
    write_adapter(folder, weights, settings, str(base), None)
    return folder


@torch.no_grad()
def answer(model: torch.nn.Module) -> torch.Tensor:
    logits = model(build_ids(300))
    return getattr(logits, "logits", logits)


@pytest.fixture
def base(tmp_path) -> Path:
    write_llama_folder(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], None])
def test_peft_opens_the_adapter_and_computes_the_same(base, targets):
    settings = SETTINGS if targets is None else LoraSettings(rank=4, alpha=8.0, targets=tuple(targets))
    decoder = build(base, settings)
    theirs = AutoModelForCausalLM.from_pretrained(base)
    before = answer(theirs)
    theirs = peft.PeftModel.from_pretrained(theirs, save(decoder, base, settings))
    assert (answer(theirs) - before).abs().max() > 0.1
    torch.testing.assert_close(answer(decoder), answer(theirs), rtol=1e-4, atol=1e-4)


def test_gradients_and_what_is_trained_are_pefts(base):
    decoder = build(base)
    folder = save(decoder, base)
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder, is_trainable=True)
    ids = build_ids(300)
    loss = theirs(input_ids=ids, labels=ids).loss
    loss.backward()
    expected = {
        name.removeprefix("base_model.model.").replace(".default.weight", ""): parameter.grad
        for name, parameter in theirs.named_parameters()
        if parameter.requires_grad
    }
    total, _ = LanguageModelLoss(decoder, LossSettings())(ids[:, :-1], torch.zeros_like(ids[:, :-1]), ids[:, 1:])
    mean = total / ids[:, 1:].numel()
    mean.backward()
    torch.testing.assert_close(mean, loss, rtol=1e-5, atol=0)
    found = pairs_of(decoder)
    assert found.keys() == expected.keys()
    for name, parameter in found.items():
        size = float(expected[name].abs().max())
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5 * size)


def test_a_new_adapter_changes_nothing_yet(base):
    decoder = load_decoder(open_checkpoint(base), torch.float32, CPU)
    before = answer(decoder)
    apply_lora(decoder, SETTINGS)
    assert torch.equal(answer(decoder), before)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_merged_is_unmerged(base, bits):
    """On the base that the adapter saw: rounded to few bits, where it was."""
    settings = LoraSettings(rank=4, alpha=8.0, bits=bits)
    decoder = build(base, settings)
    made = merge(save(decoder, base, settings), base.parent / "merged")
    merged = load_decoder(open_checkpoint(base.parent / "merged"), torch.float32, CPU)
    expected = answer(decoder)
    torch.testing.assert_close(answer(merged), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    theirs = answer(AutoModelForCausalLM.from_pretrained(base.parent / "merged"))
    torch.testing.assert_close(theirs, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert "logits" in made.checked
    assert "`" not in made.checked


def test_peft_merges_to_the_same_weights_and_unmerging_gives_the_base_back(base):
    adapter = save(build(base), base)
    merge(adapter, base.parent / "merged")
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).merge_and_unload()
    merged = AutoModelForCausalLM.from_pretrained(base.parent / "merged").state_dict()
    for name, weight in theirs.state_dict().items():
        torch.testing.assert_close(merged[name], weight, rtol=0, atol=1e-6)
    merge(adapter, base.parent / "back", base=base.parent / "merged", unmerge=True)
    original = AutoModelForCausalLM.from_pretrained(base).state_dict()
    for name, weight in AutoModelForCausalLM.from_pretrained(base.parent / "back").state_dict().items():
        torch.testing.assert_close(weight, original[name], rtol=0, atol=1e-6)


def test_merging_into_16_bits_says_how_far_rounding_went(tmp_path):
    write_llama_folder(tmp_path / "base", dtype=torch.bfloat16)
    made = merge(save(build(tmp_path / "base"), tmp_path / "base"), tmp_path / "merged")
    assert "KL" in made.checked
    weights = load_file(tmp_path / "merged/model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


@pytest.mark.parametrize("bits", [8, 4])
def test_gradients_pass_through_few_bits_as_through_the_floats_that_they_mean(base, bits):
    settings = LoraSettings(rank=4, alpha=8.0, bits=bits)
    decoder = build(base, settings)
    plain = load_decoder(open_checkpoint(base), torch.float32, CPU, bits)
    for name, module in list(plain.named_modules()):
        if isinstance(module, QuantizedLinear):
            linear = torch.nn.Linear(module.in_features, module.out_features, bias=False)
            linear.weight = torch.nn.Parameter(module.dequantize())
            plain.set_submodule(name, linear)
    apply_lora(plain, settings)
    plain.load_state_dict({**plain.state_dict(), **pairs_of(decoder)})
    ids = build_ids(300)
    for model in (decoder, plain):
        model(ids).square().mean().backward()
    for one, other in zip(pairs_of(decoder).values(), pairs_of(plain).values(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5 * float(other.grad.abs().max()))


def test_an_adapter_of_pefts_for_w_pack_merges_into_a_baichuan(tmp_path):
    state = write_baichuan_folder(tmp_path / "base", generation=2, model_file=train_tiny_sentencepiece())
    generator = torch.Generator().manual_seed(3)
    halves = {
        f"base_model.model.model.layers.{layer}.self_attn.W_pack.lora_{half}.weight": 0.3
        * torch.randn(shape, generator=generator)
        for layer in range(2)
        for half, shape in (("A", (1, 64)), ("B", (192, 1)))
    }
    (tmp_path / "adapter").mkdir()
    save_file(halves, tmp_path / "adapter/adapter_model.safetensors")
    config = peft.LoraConfig(r=1, lora_alpha=32, target_modules=["W_pack"], task_type="CAUSAL_LM")
    config.save_pretrained(tmp_path / "adapter")
    changed = copy.deepcopy(state)
    for name, tensor in halves.items():
        if ".lora_A." in name:
            weight = name.removeprefix("base_model.model.").replace(".lora_A", "")
            changed[weight] = state[weight] + 32 * halves[name.replace("lora_A", "lora_B")] @ tensor
    with pytest.raises(ChuanError, match="name it as --base"):
        merge(tmp_path / "adapter", tmp_path / "merged")
    merge(tmp_path / "adapter", tmp_path / "merged", base=tmp_path / "base")
    merged = load_decoder(open_checkpoint(tmp_path / "merged"), torch.float32, CPU)
    torch.testing.assert_close(answer(merged), answer(build_baichuan_twin(changed, 2)), rtol=1e-4, atol=1e-4)


def test_what_does_not_belong_together_is_refused(base):
    adapter = save(build(base), base)
    write_llama_folder(base.parent / "wider", intermediate_size=128)
    for arguments, reason in [
        ({"base": base.parent / "wider"}, "which in .* is 64 x 128"),
        ({"base": adapter}, "is a LoRA adapter and no model"),
        ({"bits": 5}, "bits=5"),
    ]:
        with pytest.raises(ChuanError, match=reason):
            merge(adapter, base.parent / "merged", **arguments)
    with pytest.raises(ChuanError, match="no LoRA adapter"):
        merge(base, base.parent / "merged")
    with pytest.raises(ChuanError, match="chuan merge"):
        chuan.load(adapter)
    assert not (base.parent / "merged").exists()
