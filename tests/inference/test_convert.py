"""Conversions: every source to every target, there and back bit for bit, and what a target carries along."""

import json
import random
import types
from pathlib import Path

import gguf
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM

import chuan
from chuan.chat.messages import Message
from chuan.checkpoints.folder import open_folder
from chuan.checkpoints.gguf import GGUFFile
from chuan.inference.convert import convert
from tests.support.folders import (
    build_baichuan_twin,
    read_state,
    write_baichuan_folder,
    write_llama_folder,
    write_tiny_gguf,
)
from tests.support.loading import build_ids, difference_of_logits, load_logits, refusal
from tests.support.quantized_folders import write_codes_folder, write_listed_folder, write_scb_folder
from tests.support.texts import generate_texts
from tests.support.tiny_tokenizer import WORDS, train_tiny_sentencepiece

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SIXTEEN = [torch.bfloat16, torch.float16]


def write_baichuan(path: Path, generation: int = 2, **options) -> dict[str, Tensor]:
    model_file = train_tiny_sentencepiece(dummy_prefix=generation == 1)
    return write_baichuan_folder(path, generation, model_file=model_file, **options)  # type: ignore[arg-type]


def write_source(path: Path, kind: str) -> Path:
    options = {"model_file": train_tiny_sentencepiece(dummy_prefix=False)}
    if kind == "gguf":
        path.mkdir()
        write_tiny_gguf(path / "m.gguf", "Q8_0", num_key_value_heads=4)
        return path / "m.gguf"
    if kind == "llama":
        write_llama_folder(path, "sharded-safetensors", dtype=torch.bfloat16, num_key_value_heads=4)
    elif kind == "scb":
        write_scb_folder(path, **options)
    elif kind == "listed":
        write_listed_folder(path, **options)
    elif kind == "codes":
        write_codes_folder(path, **options)
    else:
        write_baichuan(path, int(kind[-1]), weights="sharded-bin", dtype=torch.bfloat16)
    return path


def assert_same_state(first: dict[str, Tensor], second: dict[str, Tensor], but: tuple[str, ...] = ()) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert name in but or torch.equal(tensor, second[name]), name


# There and back.


@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize("weights", ["safetensors", "sharded-bin"])
def test_first_generation_to_llama_and_back_bit_for_bit(tmp_path: Path, weights, dtype):
    state = write_baichuan(tmp_path / "v1", 1, weights=weights, dtype=dtype)
    made = convert(tmp_path / "v1", tmp_path / "llama")
    assert made.checked == "re-opened; logits of a probe equal the source's, bit for bit"
    convert(tmp_path / "llama", tmp_path / "back", "baichuan")
    assert_same_state(state, read_state(tmp_path / "back"))
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["architectures"] == ["BaiChuanForCausalLM"]
    assert torch.equal(load_logits(tmp_path / "back"), load_logits(tmp_path / "v1"))


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_second_generation_to_llama_and_back_normalizes_its_head_once(tmp_path: Path, dtype, monkeypatch):
    monkeypatch.setattr("chuan.checkpoints.save.BAICHUAN2_VOCABULARY", 900)  # the tiny one is as the published one
    state = write_baichuan(tmp_path / "v2", 2, dtype=dtype)
    convert(tmp_path / "v2", tmp_path / "llama")
    convert(tmp_path / "llama", tmp_path / "back", "baichuan")
    first = read_state(tmp_path / "back")
    assert_same_state(state, first, but=("lm_head.weight",))
    expected = torch.nn.functional.normalize(state["lm_head.weight"].float(), dim=-1).to(dtype)
    assert torch.equal(first["lm_head.weight"], expected)
    convert(tmp_path / "back", tmp_path / "llama2")
    convert(tmp_path / "llama2", tmp_path / "back2", "baichuan")
    assert_same_state(first, read_state(tmp_path / "back2"))


def test_a_folded_head_goes_under_the_class_that_folds_only_where_that_changes_nothing(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("chuan.checkpoints.save.BAICHUAN2_VOCABULARY", 900)
    state = write_baichuan(tmp_path / "v2", dtype=torch.bfloat16)
    convert(tmp_path / "v2", tmp_path / "llama")
    convert(tmp_path / "llama", tmp_path / "folded", "baichuan")
    assert json.loads((tmp_path / "folded/config.json").read_text())["architectures"] == ["BaichuanForCausalLM"]
    head = load_file(tmp_path / "llama" / "model.safetensors")
    save_file(head | {"lm_head.weight": state["lm_head.weight"]}, tmp_path / "llama" / "model.safetensors")
    convert(tmp_path / "llama", tmp_path / "raw", "baichuan")  # a head that was trained on: it must stay as it is
    assert json.loads((tmp_path / "raw/config.json").read_text())["architectures"] == ["BaiChuanForCausalLM"]
    assert torch.equal(load_logits(tmp_path / "raw"), load_logits(tmp_path / "llama"))


@pytest.mark.parametrize(("dtype", "kind"), [(torch.bfloat16, "bf16"), (torch.float16, "f16")])
@pytest.mark.parametrize("tied", [False, True])
def test_llama_to_gguf_and_back_bit_for_bit(tmp_path: Path, dtype, kind, tied: bool):
    write_llama_folder(tmp_path / "llama", dtype=dtype, tie_word_embeddings=tied)
    made = convert(tmp_path / "llama", tmp_path / "m.gguf", "gguf", gguf_type=kind)
    assert "bit for bit" in made.checked
    convert(tmp_path / "m.gguf", tmp_path / "back")
    assert_same_state(read_state(tmp_path / "llama"), read_state(tmp_path / "back"))
    model, again = (chuan.load(tmp_path / name, device="cpu") for name in ("llama", "back"))
    for text in generate_texts(50, seed=3):
        assert again.tokenizer.encode(text) == model.tokenizer.encode(text)
    assert again.defaults == model.defaults


@pytest.mark.parametrize(
    "shape",
    [
        {"attention_bias": True, "mlp_bias": True},
        {"rope_parameters": LLAMA3 | {"factor": 16.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "beta_fast": 32.0}},
    ],
)
def test_what_a_gguf_has_words_for_goes_there_and_back(tmp_path: Path, shape):
    write_llama_folder(tmp_path / "llama", dtype=torch.bfloat16, **shape)
    convert(tmp_path / "llama", tmp_path / "m.gguf")
    convert(tmp_path / "m.gguf", tmp_path / "back")
    assert_same_state(read_state(tmp_path / "llama"), read_state(tmp_path / "back"))
    assert torch.equal(load_logits(tmp_path / "back"), load_logits(tmp_path / "llama"))


@pytest.mark.parametrize(
    "scaling",
    [
        LLAMA3 | {"low_freq_factor": 2.0},
        {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
        {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "attention_factor": 1.5},
        {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "beta_fast": 4.0},
    ],
)
def test_what_a_gguf_has_no_words_for_is_refused_before_anything_is_written(tmp_path: Path, scaling):
    write_llama_folder(tmp_path / "llama", rope_parameters=scaling)
    steps: list[int] = []
    message = refusal(
        convert, tmp_path / "llama", tmp_path / "m.gguf", None, None, None, lambda done, _: steps.append(done)
    )
    assert f"a GGUF cannot say this model's {scaling['rope_type']} RoPE scaling" in message
    assert steps == []


@pytest.mark.parametrize("generation", [1, 2])
def test_baichuan_through_gguf_keeps_everything(tmp_path: Path, generation: int):
    write_baichuan(tmp_path / "b", generation, dtype=torch.bfloat16)
    convert(tmp_path / "b", tmp_path / "llama")
    convert(tmp_path / "b", tmp_path / "m.gguf", "gguf")
    convert(tmp_path / "m.gguf", tmp_path / "back")
    assert_same_state(read_state(tmp_path / "llama"), read_state(tmp_path / "back"))
    model, through, again = (chuan.load(tmp_path / name, device="cpu") for name in ("b", "m.gguf", "back"))
    messages = [{"role": "user", "content": "the river <reserved_102>"}, {"role": "assistant", "content": "百川"}]
    messages.append({"role": "user", "content": "你好"})
    expected = model.chat_format.render([Message(**message) for message in messages], 4096, 64)
    for other in (through, again):
        assert other.chat_format.render([Message(**message) for message in messages], 4096, 64) == expected
        assert other.defaults == model.defaults
        assert other.stop_ids == model.stop_ids
        for text in generate_texts(100, seed=4, control=["<reserved_102>", "</s>"]):
            assert other.tokenizer.encode(text) == model.tokenizer.encode(text)
            assert other.tokenizer.encode(text, control=True) == model.tokenizer.encode(text, control=True)


# Every source, every target.

SOURCES = ["baichuan1", "baichuan2", "scb", "listed", "codes", "llama", "gguf"]
TARGETS = [
    ("llama", None),
    ("llama", 16),
    ("llama", 8),
    ("llama", 4),
    ("baichuan", None),
    ("baichuan", 8),
    ("gguf", None),
]


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_becomes_every_target(tmp_path: Path, kind: str):
    source = write_source(tmp_path / "source", kind)
    expected = load_logits(source)
    stored = {"scb": 8, "listed": 4, "codes": 4}.get(kind, 16)
    for to, bits in TARGETS:
        target = tmp_path / f"{to}-{bits}"
        convert(source, target, to, bits)
        found = load_logits(target)
        difference = float((found - expected).pow(2).mean().sqrt() / expected.std())
        exact = bits in (None, stored) and to != "gguf"
        # Sixteen bits round what few bits mean; eight and four bits round more.
        limit = 2e-3 if exact else {None: 0.02, 16: 0.02, 8: 0.05, 4: 0.5}[bits]
        assert difference <= limit, (kind, to, bits, difference)
        if to != "gguf":
            assert open_folder(target).open_weights().bits == (bits or stored)


@pytest.mark.parametrize("gguf_type", ["f16", "bf16", "q8_0", "q4_0", "q4_1"])
def test_every_type_of_gguf(tmp_path: Path, gguf_type):
    write_baichuan(tmp_path / "b", dtype=torch.bfloat16)
    convert(tmp_path / "b", tmp_path / "m.gguf", "gguf", gguf_type=gguf_type)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["blk.0.attn_q.weight"] == types["token_embd.weight"] == gguf_type.upper()
    assert types["output.weight"] == ("Q8_0" if gguf_type.startswith("q4") else gguf_type.upper())
    assert types["output_norm.weight"] == "F32"


def test_bits_name_a_type_of_gguf(tmp_path: Path):
    write_baichuan(tmp_path / "b", dtype=torch.float16)
    for bits, expected in ((None, "F16"), (16, "F16"), (8, "Q8_0"), (4, "Q4_0")):
        convert(tmp_path / "b", tmp_path / f"{bits}.gguf", "gguf", bits)
        types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / f"{bits}.gguf").tensors}
        assert types["blk.1.ffn_down.weight"] == expected


@pytest.mark.parametrize("kind", ["baichuan1", "baichuan2", "gguf"])
def test_transformers_opens_the_llama_folder(tmp_path: Path, kind: str):
    source = write_source(tmp_path / "source", kind)
    convert(source, tmp_path / "llama")
    twin = LlamaForCausalLM.from_pretrained(tmp_path / "llama", dtype=torch.float32).eval()
    assert difference_of_logits(open_folder(tmp_path / "llama"), twin) <= 1e-5


@pytest.mark.parametrize("bits", [8, 4])
def test_transformers_opens_few_bits_with_compressed_tensors(tmp_path: Path, bits: int):
    """What it decompresses is what we mean; int8 it runs with int8 activations too, so weights are compared."""
    write_baichuan(tmp_path / "b", dtype=torch.bfloat16)
    convert(tmp_path / "b", tmp_path / "few", bits=bits)
    from_few = LlamaForCausalLM.from_pretrained(tmp_path / "few", dtype=torch.bfloat16).eval()
    from_few(build_ids(900))  # decompressed at the latest now
    ours = chuan.load(tmp_path / "few", device="cpu", dtype="bfloat16", bits=16)
    found = dict(from_few.named_parameters())
    name = "model.layers.1.mlp.down_proj.weight"
    torch.testing.assert_close(found[name].float(), ours.decoder.get_parameter(name).float(), rtol=2**-7, atol=1e-6)


@pytest.mark.xdist_group("smollm2")
@pytest.mark.parametrize(("bits", "limit"), [pytest.param(8, 0.02, marks=pytest.mark.slow), (4, 1.0)])
def test_a_real_model_in_few_bits(smollm2_path: Path, tmp_path: Path, bits: int, limit: float):
    """Rounding may move its logits by more than their spread, most of it the same for all of a position."""
    made = convert(smollm2_path, tmp_path / "few", bits=bits)
    divergence = float(made.checked.split("KL ")[1].split()[0])
    assert 0 < divergence < limit
    model = chuan.load(tmp_path / "few", device="cpu")
    assert "Paris" in model.chat([{"role": "user", "content": "What is the capital of France?"}], max_new_tokens=24)


# What comes along.


def test_special_ids_that_only_config_json_has_come_along(tmp_path: Path):
    write_llama_folder(tmp_path / "llama", dtype=torch.bfloat16)
    (tmp_path / "llama" / "generation_config.json").unlink()
    names = json.loads((tmp_path / "llama" / "tokenizer_config.json").read_text())
    plain = {key: value for key, value in names.items() if key not in ("eos_token", "bos_token")}
    (tmp_path / "llama" / "tokenizer_config.json").write_text(json.dumps(plain))
    config = json.loads((tmp_path / "llama" / "config.json").read_text())
    ids = {"bos_token_id": 1, "eos_token_id": [2, 0], "pad_token_id": 0}
    (tmp_path / "llama" / "config.json").write_text(json.dumps(config | ids))
    convert(tmp_path / "llama", tmp_path / "out")
    assert LlamaForCausalLM.from_pretrained(tmp_path / "out").generation_config.eos_token_id == [2, 0]
    assert json.loads((tmp_path / "out" / "config.json").read_text()).items() >= ids.items()
    convert(tmp_path / "llama", tmp_path / "m.gguf")
    file = GGUFFile(tmp_path / "m.gguf")
    assert [file.get(f"tokenizer.ggml.{role}_token_id") for role in ("bos", "eos", "padding")] == [1, 2, 0]
    convert(tmp_path / "m.gguf", tmp_path / "back")
    for name in ("llama", "out", "m.gguf", "back"):
        assert chuan.load(tmp_path / name, device="cpu").stop_ids == {2, 0}, name


def test_a_gguf_s_own_special_ids_come_along(tmp_path: Path):
    write_tiny_gguf(tmp_path / "m.gguf")
    convert(tmp_path / "m.gguf", tmp_path / "llama")
    written = json.loads((tmp_path / "llama" / "generation_config.json").read_text())
    assert written == {"bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize("generation", [1, 2])
def test_the_first_generation_s_class_finds_its_frequencies(tmp_path: Path, generation: int, monkeypatch):
    monkeypatch.setattr("chuan.checkpoints.save.BAICHUAN2_VOCABULARY", 900)
    state = write_baichuan(tmp_path / "b", generation, dtype=torch.bfloat16)
    convert(tmp_path / "b", tmp_path / "out", "baichuan")
    written = {name: tensor for name, tensor in read_state(tmp_path / "out").items() if "inv_freq" in name}
    expected = {name: tensor for name, tensor in state.items() if "inv_freq" in name}
    assert written.keys() == expected.keys()
    assert len(written) == (2 if generation == 1 else 0)
    assert all(torch.equal(written[name], expected[name]) for name in written)


def test_odd_generation_defaults_and_texts(tmp_path: Path):
    write_baichuan(tmp_path / "b", dtype=torch.bfloat16)
    path = tmp_path / "b" / "generation_config.json"
    values = json.loads(path.read_text()) | {"do_sample": True}
    for odd, words in [({"top_k": 5.5}, "top_k must be an integer"), ({"temperature": 10**400}, "temperature must")]:
        path.write_text(json.dumps(values | odd))
        assert words in refusal(convert, tmp_path / "b", tmp_path / "m.gguf")
    path.write_text(json.dumps(values | {"top_k": 10**12, "note": "\ud800"}))
    convert(tmp_path / "b", tmp_path / "m.gguf")  # no place of llama.cpp's holds such a number
    assert GGUFFile(tmp_path / "m.gguf").get("general.sampling.top_k") is None
    convert(tmp_path / "m.gguf", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["note"] == "\ud800"
    (tmp_path / "b" / "chat_template.jinja").unlink(missing_ok=True)
    (tmp_path / "b" / "tokenizer_config.json").write_text('{"chat_template": "\\ud800hi"}')
    assert "half a character" in refusal(convert, tmp_path / "b", tmp_path / "x")


@pytest.mark.parametrize("generation", [1, 2])
def test_the_template_gives_the_ids_of_the_format(tmp_path: Path, generation: int):
    """Through transformers, over the exported tokenizer.json: both generations, with and without a dummy prefix."""
    write_baichuan(tmp_path / "b", generation, dtype=torch.bfloat16)
    convert(tmp_path / "b", tmp_path / "llama")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "llama")
    model = chuan.load(tmp_path / "llama", device="cpu")
    assert model.tokenizer.table.strip_first_space == (generation == 1)
    rng = random.Random(generation)
    nasty = [text for text in generate_texts(400, seed=5) if text.strip()]
    for _ in range(400):
        texts = [" ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 9))), rng.choice(nasty), "\n\nhi", "  a "]
        messages = [{"role": "system", "content": rng.choice(texts)}] if rng.random() < 0.5 else []
        for turn in range(rng.choice([1, 1, 3, 5])):
            messages.append({"role": "assistant" if turn % 2 else "user", "content": rng.choice(texts)})
        expected = model.chat_format.render([Message(**message) for message in messages], 10**6, 64)
        found = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        assert found == expected, messages


def test_an_exported_tokenizer_is_still_sentencepiece_to_the_id(tmp_path: Path):
    write_baichuan(tmp_path / "b", 1)
    convert(tmp_path / "b", tmp_path / "llama")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "llama")
    ours = open_folder(tmp_path / "llama").load_tokenizer()
    roles = [name for name, index in ours.control_pieces.items() if index in (195, 196)]
    for text in [*generate_texts(500, seed=6, control=roles), roles[0], f"{roles[1]} a", f" {roles[0]}"]:
        assert theirs(text)["input_ids"] == ours.encode(text, control=True), text


def test_the_header_of_a_gguf(tmp_path: Path):
    state = write_baichuan(tmp_path / "b", dtype=torch.float16)
    convert(tmp_path / "b", tmp_path / "m.gguf", "gguf")
    file = GGUFFile(tmp_path / "m.gguf")
    kinds, pieces = file.get("tokenizer.ggml.token_type"), file.get("tokenizer.ggml.tokens")
    assert [kinds[195], kinds[196]] == [gguf.TokenType.CONTROL] * 2
    assert kinds[194] == gguf.TokenType.USER_DEFINED
    assert file.get("tokenizer.ggml.add_space_prefix") is False
    assert file.get("tokenizer.ggml.add_bos_token") is False
    assert file.get("tokenizer.ggml.eot_token_id") == 195
    template = file.get("tokenizer.chat_template")
    assert pieces[195] in template
    assert pieces[196] in template
    assert "</s>" not in template
    assert file.get("general.sampling.temp") == pytest.approx(0.3)
    assert file.get("general.license.name").startswith("Baichuan's own")
    head = file.read("output.weight").float()
    torch.testing.assert_close(head.norm(dim=-1), torch.ones(len(head)), rtol=1e-3, atol=0)
    assert not torch.allclose(state["lm_head.weight"].float().norm(dim=-1), torch.ones(len(head)), rtol=0.1)


def test_a_first_generation_gguf_asks_for_the_space_prefix(tmp_path: Path):
    write_baichuan(tmp_path / "b", 1)
    convert(tmp_path / "b", tmp_path / "folder", "gguf")
    (file,) = (tmp_path / "folder").glob("*.gguf")
    assert file.name == "folder-F16.gguf"
    assert GGUFFile(file).get("tokenizer.ggml.add_space_prefix") is True
    assert "\\ue000" not in GGUFFile(file).get("tokenizer.chat_template")
    assert (tmp_path / "folder" / "README.md").is_file()
    assert torch.isfinite(load_logits(tmp_path / "folder")).all()


def test_the_card_says_where_it_came_from_and_carries_the_licence(tmp_path: Path):
    write_baichuan(tmp_path / "Baichuan2-7B-Chat", dtype=torch.bfloat16)
    source = tmp_path / "Baichuan2-7B-Chat"
    (source / "Community License for Baichuan2 Model.pdf").write_bytes(b"%PDF terms")
    (source / "Baichuan2 模型社区许可协议.pdf").write_bytes(b"%PDF zh")
    (source / "modeling_baichuan.py").write_text("raise SystemExit('executed')")
    (source / "license.py").write_text("raise SystemExit('executed')")
    (source / "README.md").write_text("---\nlicense: other\nlicense_name: baichuan2-community\n---\n# card\n")
    made = convert(source, tmp_path / "out", bits=8)
    names = {path.name for path in made.path.iterdir()}
    assert {"Community License for Baichuan2 Model.pdf", "Baichuan2 模型社区许可协议.pdf", "README.md"} <= names
    assert not [name for name in names if name.endswith(".py")]
    card = (made.path / "README.md").read_text()
    matter = yaml.safe_load(card.split("---")[1])
    assert matter["license"] == "other"
    assert matter["license_name"] == "baichuan2-community"
    for words in (
        "Baichuan2-7B-Chat",
        "int8",
        "KL",
        "Intended use",
        "Out of scope",
        "false",
        "lewd",
        "biased",
        "offensive",
    ):
        assert words in card
    assert "Production use before" in card
    assert str(tmp_path) not in card  # nobody's folders are published
    convert(made.path, tmp_path / "again.gguf", "gguf")
    last = convert(tmp_path / "again.gguf", tmp_path / "last")
    assert last.origin.licence == "baichuan2-community"  # through any number of conversions


def test_a_saved_model_carries_its_card_too(tmp_path: Path):
    write_baichuan(tmp_path / "b", 2, dtype=torch.bfloat16)
    (tmp_path / "b" / "LICENSE").write_text("terms")
    saved = chuan.load(tmp_path / "b", device="cpu", dtype="float32", bits=4).save(tmp_path / "saved")
    assert (saved / "LICENSE").read_text() == "terms"
    assert "int4 in groups of 32" in (saved / "README.md").read_text()
    assert torch.equal(load_logits(saved), load_logits(tmp_path / "b", 4))


# Bad input.


def test_bad_options_are_one_line(tmp_path: Path):
    for arguments, words in [
        (("onnx",), "use llama, baichuan or gguf"),
        (("llama", 5), "use 16, 8 or 4"),
        (("gguf", None, "q6_k"), "use f16, bf16, q8_0, q4_0, q4_1"),
        (("llama", None, "f16"), "--type is for --to gguf"),
        (("gguf", 8, "q8_0"), "leave --bits out"),
        (("GGUF", 8, "Q8_0"), "leave --bits out"),
    ]:
        assert words in refusal(convert, tmp_path / "a", tmp_path / "b", *arguments)


def test_the_kind_follows_the_name_where_nobody_says_it(tmp_path: Path):
    write_baichuan(tmp_path / "b", dtype=torch.bfloat16)
    convert(tmp_path / "b", tmp_path / "m.GGUF", gguf_type="Q8_0")  # type: ignore[arg-type]
    assert GGUFFile(tmp_path / "m.GGUF").type_name == "Q8_0"
    convert(tmp_path / "b", tmp_path / "folder")
    assert open_folder(tmp_path / "folder").kind == "Llama folder"
    convert(tmp_path / "b", tmp_path / "other", "Baichuan")  # type: ignore[arg-type]
    assert open_folder(tmp_path / "other").kind.startswith("Baichuan")


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path: Path):
    write_baichuan(tmp_path / "b", vocab_size=300)
    for to in ("llama", "baichuan", "gguf"):
        message = refusal(convert, tmp_path / "b", tmp_path / "out", to)
        assert "has 900 pieces but the model only 300; they do not belong together" in message
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_bad_destination_is_one_line_and_nothing_is_read(tmp_path: Path):
    write_baichuan(tmp_path / "b")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("keep")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for to in ("llama", "baichuan", "gguf"):
        assert "is there already" in refusal(convert, tmp_path / "b", tmp_path / "taken", to)
        assert "is there already" in refusal(convert, tmp_path / "b", tmp_path / "link", to)
        assert "lies inside of the source" in refusal(convert, tmp_path / "b", tmp_path / "b" / "c" / "d", to)
        assert "cannot be written" in refusal(convert, tmp_path / "b", tmp_path / "taken" / "mine" / "x", to)
    assert (tmp_path / "taken" / "mine").read_text() == "keep"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "link", "taken"]


def test_what_is_no_baichuan_does_not_become_one(tmp_path: Path):
    write_llama_folder(tmp_path / "llama")  # grouped queries
    assert "this model is no Baichuan" in refusal(convert, tmp_path / "llama", tmp_path / "b", "baichuan")
    assert not (tmp_path / "b").exists()


def test_a_source_that_answers_nan_is_refused(tmp_path: Path):
    write_baichuan(tmp_path / "b", dtype=torch.float32)
    state = read_state(tmp_path / "b")
    state["model.norm.weight"][:] = 3e38
    save_file(state, tmp_path / "b" / "model.safetensors")
    for to in ("llama", "gguf"):
        assert "NaN or infinity" in refusal(convert, tmp_path / "b", tmp_path / to, to)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_too_large_for_float16_is_refused(tmp_path: Path):
    write_baichuan(tmp_path / "b", dtype=torch.bfloat16)
    state = read_state(tmp_path / "b")
    state["model.embed_tokens.weight"][3, 3] = 1e6
    save_file(state, tmp_path / "b" / "model.safetensors")
    assert "use --type bf16" in refusal(convert, tmp_path / "b", tmp_path / "m.gguf", "gguf", None, "f16")
    convert(tmp_path / "b", tmp_path / "m.gguf", "gguf")


def test_a_folder_with_two_ggufs_asks_which(tmp_path: Path):
    for name in ("a", "b"):
        write_tiny_gguf(tmp_path / f"{name}.gguf")
    assert "holds 2 GGUF files; give the path of one" in refusal(convert, tmp_path, tmp_path.parent / "x")


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch):
    write_baichuan(tmp_path / "b")
    # A small disk cannot be had here.
    monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(total=1000, used=900, free=100))
    for to in ("llama", "gguf"):
        assert "free some space or choose another disk" in refusal(convert, tmp_path / "b", tmp_path / to, to)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [None, 8, 4])
def test_the_space_that_is_asked_for_is_the_weights(tmp_path: Path, monkeypatch, dtype, bits):
    """To a tenth, whatever the source has: there are scales, headers and names too."""
    write_baichuan(tmp_path / "b", dtype=dtype)
    asked: list[int] = []
    monkeypatch.setattr("chuan.checkpoints.save.check_space", lambda _, size: asked.append(size))
    for source, target, wanted in [("b", "c", bits), ("c", "d", 16), ("c", "e", None)]:
        convert(tmp_path / source, tmp_path / target, bits=wanted)
        written = sum(tensor.nbytes for tensor in read_state(tmp_path / target).values())
        assert asked.pop() == pytest.approx(written, rel=0.1)


def test_what_comes_back_from_the_disk_is_compared(tmp_path: Path, monkeypatch):
    """A writer that puts rows in a wrong order is caught before the folder gets its name."""
    write_baichuan(tmp_path / "b", dtype=torch.bfloat16)
    monkeypatch.setattr("chuan.checkpoints.layouts.join_pairs", lambda rows, heads: rows.flip(0))
    message = refusal(convert, tmp_path / "b", tmp_path / "m.gguf", "gguf")
    assert "its logits" in message
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_twin_of_transformers_agrees_after_every_step(tmp_path: Path):
    state = write_baichuan(tmp_path / "b", dtype=torch.float32)
    twin = build_baichuan_twin(state, 2)
    for source, target, to in [("b", "l", "llama"), ("l", "c", "baichuan"), ("c", "d", "llama")]:
        convert(tmp_path / source, tmp_path / target, to)
        assert difference_of_logits(open_folder(tmp_path / target), twin) <= 1e-5
