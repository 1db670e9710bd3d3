"""What a folder says about itself: configurations, tokenizers, role ids; and what it must not be able to do."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import chuan
from chuan.checkpoints.checkpoint import load_decoder
from chuan.checkpoints.folder import open_folder, read_role_ids
from tests.support.folders import (
    CHATML,
    CONTROL,
    train_byte_level,
    write_baichuan_folder,
    write_booby_traps,
    write_llama_folder,
)
from tests.support.loading import CPU, attempt, load_logits, refusal
from tests.support.tiny_tokenizer import train_tiny_sentencepiece

INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    write_llama_folder(tmp_path)
    return tmp_path


@pytest.fixture
def baichuan(tmp_path: Path) -> Path:
    write_baichuan_folder(tmp_path, model_file=train_tiny_sentencepiece(dummy_prefix=False))
    return tmp_path


def edit(folder: Path, file: str = "config.json", remove: str | None = None, **changes: Any) -> None:
    path = folder / file
    values = json.loads(path.read_text())
    values.pop(remove, None)
    path.write_text(json.dumps(values | changes))


def test_a_llama_folder_is_described(llama: Path):
    checkpoint = open_folder(llama)
    assert (checkpoint.kind, checkpoint.bits, checkpoint.role_ids) == ("Llama folder", 16, None)
    assert checkpoint.chat_template == CHATML
    assert checkpoint.special == {"bos_token": CONTROL[1], "eos_token": CONTROL[2]}
    assert checkpoint.generation_config["temperature"] == 0.7
    text = "the river 温故而知新 <|im_end|>"
    assert checkpoint.load_tokenizer().encode(text, control=True) == train_byte_level().encode(text).ids


def test_a_baichuan_folder_is_described(baichuan: Path):
    checkpoint = open_folder(baichuan)
    assert (checkpoint.kind, checkpoint.bits, checkpoint.role_ids) == ("Baichuan 2 folder", 16, (195, 196))
    assert checkpoint.config.max_position_embeddings == 256
    assert checkpoint.special["pad_token"] == "<unk>"
    tokenizer = checkpoint.load_tokenizer()
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(baichuan / "tokenizer.model"))
    assert tokenizer.encode("温故而知新 river", control=True) == oracle.encode("温故而知新 river")
    assert tokenizer.vocab_size == checkpoint.config.vocab_size  # <pad>, one beyond, is ignored
    assert tokenizer.prompt_prefix == ()


@pytest.mark.parametrize("generation", [1, 2])
def test_no_python_file_of_a_folder_is_imported(tmp_path: Path, generation):
    folder, mark = tmp_path / "model", tmp_path / "mark"
    write_baichuan_folder(folder, generation, "bin", model_file=train_tiny_sentencepiece())
    write_booby_traps(folder, mark)
    checkpoint = open_folder(folder)
    checkpoint.load_tokenizer().encode("百川")
    load_decoder(checkpoint, checkpoint.open_weights().read("model.norm.weight").dtype, CPU)
    chuan.load(folder, bits=8, device="cpu").chat([{"role": "user", "content": "hi"}], max_new_tokens=2)
    assert not mark.exists()
    exec((folder / "quantizer.py").read_text())  # the traps do work
    assert mark.read_text() == "quantizer\n"


def test_the_generation_follows_the_vocabulary_where_no_class_is_named(baichuan: Path):
    edit(baichuan, architectures=None)
    assert "set architectures to" in refusal(open_folder, baichuan)
    edit(baichuan, vocab_size=64000)
    assert open_folder(baichuan).kind == "Baichuan folder"
    edit(baichuan, vocab_size=125696)
    assert open_folder(baichuan).kind == "Baichuan 2 folder"
    edit(baichuan, remove="model_type", architectures=["BaichuanForCausalLM"])
    assert open_folder(baichuan).kind == "Baichuan 2 folder"


def test_model_max_length_is_the_context(baichuan: Path):
    edit(baichuan, model_max_length=128)
    assert open_folder(baichuan).config.context_length == 128


def test_a_folder_without_config_is_refused(tmp_path: Path):
    assert f"{tmp_path}/config.json is missing" in refusal(open_folder, tmp_path)


@pytest.mark.parametrize("content", [b"", b"not json", b"[1]", b"null", b"\xff"])
def test_a_config_that_is_no_table_is_refused(llama: Path, content: bytes):
    (llama / "config.json").write_bytes(content)
    assert f"{llama}/config.json" in refusal(open_folder, llama)


@pytest.mark.parametrize("model_type", ["gpt2", "qwen2", None, 5, ["llama"], {}])
def test_other_families_are_refused(llama: Path, model_type: object):
    edit(llama, model_type=model_type)
    assert "Chuan opens llama and baichuan" in refusal(open_folder, llama)


def test_alibi_is_refused(baichuan: Path):
    edit(baichuan, hidden_size=5120)
    assert f"{baichuan} is a Baichuan model with ALiBi positions (13B)" in refusal(open_folder, baichuan)
    edit(baichuan, remove="max_position_embeddings", hidden_size=64)
    assert "ALiBi positions (13B)" in refusal(open_folder, baichuan)


@pytest.mark.parametrize("change", [{"num_key_value_heads": 2}, {"attention_bias": True}, {"mlp_bias": True}])
def test_what_w_pack_cannot_be_is_refused(baichuan: Path, change: dict):
    edit(baichuan, **change)
    assert "describes no Baichuan model" in refusal(open_folder, baichuan)


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "bitsandbytes"},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "compressed-tensors"},
        {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": INT8 | {"num_bits": 4}}}},
        {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": INT8 | {"strategy": "group"}}}},
        {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": INT8}, "b": {"weights": INT8}}},
        "int8",
        [],
    ],
)
def test_other_quantizations_are_refused(llama: Path, quantization: object):
    edit(llama, quantization_config=quantization)
    message = refusal(open_folder, llama)
    assert f"{llama} is quantized in a way that this version does not read" in message
    assert "bits=8" in message


@pytest.mark.parametrize(("user", "assistant"), [(195, None), (195, 195), (True, 196), (-1, 5), (5, 300), ("5", 6)])
def test_wrong_role_ids_are_refused(user: object, assistant: object):
    table = {"user_token_id": user, "assistant_token_id": assistant}
    assert "both must be different ids below the vocabulary of 300" in refusal(read_role_ids, table, 300)


def test_a_folder_without_tokenizer_is_refused_when_it_is_asked_for(tmp_path: Path):
    write_baichuan_folder(tmp_path)
    load_logits(tmp_path)
    assert f"{tmp_path} has no tokenizer" in refusal(open_folder(tmp_path).load_tokenizer)


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\x0a\x05hello"])
def test_a_broken_tokenizer_model_is_refused(baichuan: Path, content: bytes):
    (baichuan / "tokenizer.model").write_bytes(content)
    assert "fetch it again" in refusal(open_folder(baichuan).load_tokenizer)


def test_tokenizer_model_is_the_truth_only_for_baichuan_chat(baichuan: Path):
    train_byte_level().save(str(baichuan / "tokenizer.json"))
    assert open_folder(baichuan).load_tokenizer().model_file() is not None
    (baichuan / "generation_config.json").unlink()
    assert open_folder(baichuan).load_tokenizer().model_file() is None


def test_add_bos_token_is_obeyed_and_llama_adds_one_by_itself(baichuan: Path):
    edit(baichuan, "tokenizer_config.json", add_bos_token=True)
    assert open_folder(baichuan).load_tokenizer().prompt_prefix == (1,)
    (baichuan / "tokenizer_config.json").unlink()
    assert open_folder(baichuan).load_tokenizer().prompt_prefix == ()
    (baichuan / "generation_config.json").unlink()
    edit(baichuan, model_type="llama", architectures=["LlamaForCausalLM"])
    assert open_folder(baichuan).load_tokenizer().prompt_prefix == (1,)


def test_added_tokens_beyond_the_embedding_are_ignored(llama: Path):
    description = json.loads((llama / "tokenizer.json").read_text())
    size = open_folder(llama).config.vocab_size
    token = description["added_tokens"][0] | {"id": size, "content": "<pad>"}
    description["added_tokens"].append(token)
    (llama / "tokenizer.json").write_text(json.dumps(description))
    assert open_folder(llama).load_tokenizer().vocab_size == size


def test_chat_templates_are_found_in_each_place(llama: Path):
    templates = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    edit(llama, "tokenizer_config.json", chat_template=templates)
    assert open_folder(llama).chat_template == "d"
    (llama / "chat_template.jinja").write_text("川", encoding="utf-8")
    assert open_folder(llama).chat_template == "川"
    (llama / "chat_template.jinja").write_bytes(b"\xff")
    assert f"{llama}/chat_template.jinja is not UTF-8" in refusal(open_folder, llama)
    (llama / "chat_template.jinja").unlink()
    edit(llama, "tokenizer_config.json", chat_template=5)
    assert open_folder(llama).chat_template is None


NUMBERS = [0, 1, -1, 3, 1.5, 1e308, float("nan"), float("inf"), 2**31, 2**64, 10**400]
TEXTS = ["", "a", "\n", "\ud800", "../x", "llama", "baichuan"]
TABLES = [[], {}, [1], ["a"], [[]], {"a": 1}, {"content": 5}, {"rope_type": "yarn", "factor": 2}]
JUNK = st.sampled_from([None, True, False, *NUMBERS, *TEXTS, *TABLES])
KEYS = ["rope_scaling", "quantization_config", "chat_template", "head_dim", "sliding_window", "user_token_id", "seed"]


def _paths(value: Any, path: tuple = ()) -> list[tuple]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [inner for key, child in children for inner in _paths(child, (*path, key))]


def _draw_edit(data: st.DataObject, values: dict) -> dict:
    edited = copy.deepcopy(values)
    *parents, last = data.draw(st.sampled_from(_paths(edited)))
    place: Any = edited
    for key in parents:
        place = place[key]
    if data.draw(st.booleans()):
        place[last] = data.draw(JUNK)
    else:
        del place[last]
    return edited | data.draw(st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=1))


@pytest.mark.parametrize("kind", ["llama", "baichuan"])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json"])
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_edit_is_refused_or_loads(request, kind: str, file: str, data: st.DataObject):
    folder: Path = request.getfixturevalue(kind)
    content = (folder / file).read_bytes()
    try:
        (folder / file).write_text(json.dumps(_draw_edit(data, json.loads(content))))
        attempt(chuan.load, folder, 16, "cpu", "float32")
    finally:
        (folder / file).write_bytes(content)
