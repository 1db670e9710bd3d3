"""The published snippet, verbatim, in a process of its own, on a folder whose every Python file is a trap."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece

from tests.support.folders import write_baichuan_folder, write_booby_traps
from tests.support.hub_server import HubServer, read_folder
from tests.support.tiny_tokenizer import train_tiny_sentencepiece

SNIPPET = """
import chuan

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.utils import GenerationConfig

tokenizer = AutoTokenizer.from_pretrained(NAME, use_fast=False, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(NAME, device_map="auto", trust_remote_code=True)
model.generation_config = GenerationConfig.from_pretrained(NAME)

messages = []                                   # blocking
messages.append({"role": "user", "content": "解释一下“温故而知新”"})
response = model.chat(tokenizer, messages)
print(response)

position = 0                                    # streaming: each item is the whole text so far
for response in model.chat(tokenizer, messages, stream=True):
    print(response[position:], end='', flush=True)
    position = len(response)
"""

# What a test wants to know afterwards, as one line of JSON behind a mark.
REPORT = "\nimport json, sys\nprint('\\n@@' + json.dumps({}))\n"


def run(code: str, name: Path | str, report: str, **environment: str) -> dict:
    import os

    program = f"NAME = {str(name)!r}\n{code}{REPORT.replace('{}', report)}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **environment}, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.rsplit("@@", 1)[1])


@pytest.fixture(scope="module")
def model_file() -> bytes:
    return train_tiny_sentencepiece(dummy_prefix=False)


@pytest.fixture
def trapped(tmp_path: Path, model_file: bytes) -> tuple[Path, Path]:
    folder, mark = tmp_path / "baichuan2", tmp_path / "mark"
    write_baichuan_folder(folder, generation=2, weights="bin", model_file=model_file)
    write_booby_traps(folder, mark)
    return folder, mark


def test_snippet_verbatim_runs_nothing_from_the_folder(trapped):
    folder, mark = trapped
    report = """{
        "messages": messages,
        "chat": type(model.chat(tokenizer, messages)).__name__,
        "cumulative": (lambda items: all(b.startswith(a) for a, b in zip(items, items[1:])))(
            list(model.chat(tokenizer, messages, stream=True))),
        "remote": [name for name in sys.modules if "transformers_modules" in name],
    }"""
    result = run(SNIPPET, folder, report)
    assert not mark.exists(), mark.read_text()
    assert result["messages"] == [{"role": "user", "content": "解释一下“温故而知新”"}]
    assert result["chat"] == "str"
    assert result["cumulative"]
    assert result["remote"] == []


def test_snippet_with_a_hub_id_asks_for_no_code(trapped, tmp_path):
    folder, mark = trapped
    with HubServer({"someone/Baichuan2-tiny": read_folder(folder)}) as hub:
        settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        result = run(SNIPPET, "someone/Baichuan2-tiny", "len(response)", **settings)
    assert isinstance(result, int)
    assert any(path.endswith("pytorch_model.bin") for path in hub.requests)
    assert not [path for path in hub.requests if path.endswith(".py")]
    assert not mark.exists()


def test_traps_stay_shut_whatever_the_tokenizer_config_says(trapped):
    """transformers looks for code in places that depend on what this file leaves out."""
    folder, mark = trapped
    code = """
import chuan, json, pathlib
from transformers import AutoTokenizer
path, sizes = pathlib.Path(NAME) / "tokenizer_config.json", []
values = json.loads(path.read_text())
for left in ({k: v for k, v in values.items() if k != "tokenizer_class"}, {"auto_map": values["auto_map"]}, None):
    path.unlink() if left is None else path.write_text(json.dumps(left))
    for use_fast in (False, True):
        sizes.append(len(AutoTokenizer.from_pretrained(NAME, use_fast=use_fast, trust_remote_code=True)))
"""
    sizes = run(code, folder, "sizes")
    assert len(sizes) == 6
    assert len(set(sizes)) == 1
    assert not mark.exists(), mark.read_text()


def test_first_generation_base_model_continues_a_text(tmp_path, model_file):
    folder, mark = tmp_path / "baichuan", tmp_path / "mark"
    write_baichuan_folder(folder, generation=1, weights="sharded-bin", model_file=model_file, role_ids=None)
    write_booby_traps(folder, mark)
    code = """
import chuan
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(NAME, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(NAME, device_map="auto", trust_remote_code=True)
inputs = tokenizer('登鹳雀楼->王之涣\\n夜雨寄北->', return_tensors='pt')
pred = model.generate(**inputs, max_new_tokens=16, repetition_penalty=1.1)
print(tokenizer.decode(pred.cpu()[0], skip_special_tokens=True))
try:
    model.chat(tokenizer, [{"role": "user", "content": "hi"}])
except chuan.ChuanError as error:
    refused = str(error)
"""
    result = run(code, folder, '[pred.shape[1] - inputs["input_ids"].shape[1], refused]')
    assert 1 <= result[0] <= 16
    assert "base model" in result[1]
    assert not mark.exists()


def test_quantize_save_and_back_and_todays_caches(trapped, tmp_path):
    folder, mark = trapped
    code = f"""
{SNIPPET}
# Exact where rounding is fine enough that no two logits meet.
model = AutoModelForCausalLM.from_pretrained(NAME, dtype=torch.float32, trust_remote_code=True)
model.generation_config = GenerationConfig.from_pretrained(NAME)
inputs = tokenizer("百川 hello 123", return_tensors="pt")
greedy = dict(max_new_tokens=8, do_sample=False)
plain = model.generate(**inputs, **greedy).tolist()
static = model.generate(**inputs, cache_implementation="static", **greedy).tolist()
uncached = model.generate(**inputs, use_cache=False, **greedy).tolist()
beams = model.generate(**inputs, num_beams=2, **greedy).shape[1]
batch = tokenizer(["hello", "hello 百川 hello"], return_tensors="pt", padding=True, padding_side="left")
alone = model.generate(**tokenizer("hello", return_tensors="pt"), **greedy)[0, -8:].tolist()
together = model.generate(**batch, **greedy)[0, -8:].tolist()
before = model(**inputs).logits
same = model.quantize(8) is model
quantized = model(**inputs).logits
model.save_pretrained({str(tmp_path / "saved")!r})
tokenizer.save_pretrained({str(tmp_path / "saved")!r})
tokenizer2 = AutoTokenizer.from_pretrained({str(tmp_path / "saved")!r}, trust_remote_code=True)
model2 = AutoModelForCausalLM.from_pretrained({str(tmp_path / "saved")!r}, dtype=torch.float32, trust_remote_code=True)
answer = model2.chat(tokenizer2, messages)
"""
    report = """{
        "caches": plain == static == uncached, "batch": alone == together, "same": same,
        "close": float((before - quantized).abs().max() / before.abs().max()),
        "equal": bool((model2(**inputs).logits == quantized).all()),
        "answer": type(answer).__name__,
        "int8": sum(b.dtype == torch.int8 for b in model2.buffers()),
    }"""
    result = run(code, folder, report)
    assert result.pop("close") < 0.2
    assert result.pop("int8") == 7 * 2
    assert result == {"caches": True, "batch": True, "same": True, "equal": True, "answer": "str"}
    assert not mark.exists()


def test_tokenizer_is_sentencepiece_to_the_id(trapped, model_file):
    folder, _ = trapped
    texts = ["", " a", "a  b\n\tc", "<reserved_102> <s></s><unk>", "温故而知新 😀\x00\x07", "1234 <SEP>", "▁x"]
    code = f"""
import chuan
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(NAME, use_fast=False, trust_remote_code=True)
ids = [tokenizer(text)["input_ids"] for text in {texts!r}]
decoded = [tokenizer.decode(i, skip_special_tokens=True) for i in ids]
"""
    ids, decoded, size = run(code, folder, "[ids, decoded, len(tokenizer)]")
    oracle = sentencepiece.SentencePieceProcessor(model_proto=model_file)
    assert ids == [oracle.encode(text) for text in texts]
    assert decoded == [oracle.decode(i) for i in ids]
    assert size == oracle.get_piece_size()  # <pad> beyond the vocabulary is not there


def test_transformers_before_chuan_and_other_models_untouched(tmp_path):
    code = """
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig
import chuan
config = AutoConfig.for_model("baichuan")
other = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32,
    num_hidden_layers=1, num_attention_heads=2))
"""
    result = run(code, "", "[type(config).__module__, type(other).__module__]")
    assert result[0].startswith("chuan.")
    assert result[1].startswith("transformers.")


def test_an_argument_nobody_knows_is_not_passed_over(trapped):
    """A renamed argument (transformers 5.24 renamed the cache) must not change answers in silence."""
    folder, _ = trapped
    code = """
import chuan, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(NAME, dtype=torch.float32, trust_remote_code=True)
ids = torch.tensor([[5, 6, 7]])
refused = []
for call in (lambda: model(ids, kv_store=1), lambda: model(ids, output_attentions=True),
             lambda: AutoModelForCausalLM.from_pretrained(NAME, load_in_8bit=True, trust_remote_code=True)):
    try:
        call()
    except chuan.ChuanError as error:
        refused.append(str(error))
first = model(ids[:, :2], use_cache=True)
cache = first.get("cache", first.get("past_key_values"))
new = model(ids[:, 2:], cache=cache).logits[0, -1]
loss = model(ids, labels=ids).loss.item()
"""
    refused, close, loss = run(code, folder, "[refused, float((new - model(ids).logits[0, -1]).abs().max()), loss]")
    assert [word in text for word, text in zip(("kv_store", "output_attentions", "load_in_8bit"), refused, strict=True)]
    assert close < 1e-4
    assert loss > 0
