"""What we write: opened by transformers and by ourselves, damaged, interrupted, and on a full disk."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM

import chuan
from chuan.checkpoints.checkpoint import load_decoder
from chuan.checkpoints.folder import open_folder
from chuan.checkpoints.save import Extras, save_folder
from chuan.checkpoints.source import DecoderSource
from chuan.model.config import ModelConfig
from chuan.model.decoder import Decoder
from chuan.quantization.int8 import Int8Linear, dequantize_rows
from tests.support.folders import CHATML, build_llama, write_baichuan_folder, write_llama_folder, write_tiny_gguf
from tests.support.loading import CPU, build_ids, difference_of_logits, load_logits, refusal
from tests.support.tiny_tokenizer import train_tiny_sentencepiece

TEXTS = ["the river runs to the sea", "温故而知新，可以为师矣。", "a  b\n\tc 123 😀", "<reserved_102>x", ""]
CONTROL_TEXT = "<|im_end|></s><s>"


def write_source(path: Path, kind: str) -> Path:
    if kind == "gguf":
        write_tiny_gguf(path.with_suffix(".gguf"), "Q8_0")
        return path.with_suffix(".gguf")
    if kind == "llama":
        write_llama_folder(path, "sharded-bin", dtype=torch.bfloat16)
    elif kind == "llama with tokenizer.model":
        build_llama(900).save_pretrained(path)
        (path / "tokenizer.model").write_bytes(train_tiny_sentencepiece(vocab_size=900))
    else:
        write_baichuan_folder(path, int(kind[-1]), "bin", model_file=train_tiny_sentencepiece())  # type: ignore[arg-type]
    return path


def open_both(tmp_path: Path, kind: str, **options) -> tuple[chuan.LanguageModel, Path]:
    """A source that was loaded, and the folder that it was saved to."""
    model = chuan.load(write_source(tmp_path / "source", kind), device="cpu", dtype="float32", **options)
    return model, model.save(tmp_path / "deep" / "saved")


@pytest.mark.parametrize("kind", ["llama", "llama with tokenizer.model", "gguf", "baichuan1", "baichuan2"])
def test_transformers_opens_what_we_write(tmp_path: Path, kind: str):
    model, saved = open_both(tmp_path, kind)
    twin = LlamaForCausalLM.from_pretrained(saved, dtype=torch.float32).eval()
    ids = build_ids(model.decoder.config.vocab_size)
    with torch.inference_mode():
        expected, found = model.decoder(ids), twin(ids).logits
    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-5
    tokenizer = AutoTokenizer.from_pretrained(saved)
    for text in TEXTS:
        expected_ids = [*model.tokenizer.prompt_prefix, *model.tokenizer.encode(text, control=True)]
        assert tokenizer(text)["input_ids"] == expected_ids
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (model.tokenizer.bos_id, model.tokenizer.eos_id)
    again = chuan.load(saved, device="cpu", dtype="float32")
    assert torch.equal(again.logits(ids[0]), model.logits(ids[0]))
    assert again.tokenizer.prompt_prefix == model.tokenizer.prompt_prefix
    assert again.stop_ids == model.stop_ids
    assert type(again.chat_format) is type(model.chat_format)
    for text in (*TEXTS, CONTROL_TEXT):
        assert again.tokenizer.encode(text) == model.tokenizer.encode(text)


def test_generation_config_and_template_are_kept(tmp_path: Path):
    model, saved = open_both(tmp_path, "llama")
    assert json.loads((saved / "generation_config.json").read_text()) == dict(model.extras.generation_config)
    assert GenerationConfig.from_pretrained(saved).temperature == 0.7
    assert AutoTokenizer.from_pretrained(saved).chat_template == open_folder(saved).chat_template == CHATML
    assert chuan.load(saved, device="cpu").defaults == model.defaults


def test_baichuan_chat_survives(tmp_path: Path):
    _, saved = open_both(tmp_path, "baichuan2")
    checkpoint = open_folder(saved)
    assert checkpoint.role_ids == (195, 196)
    assert (saved / "tokenizer.model").read_bytes() == train_tiny_sentencepiece()
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(saved / "tokenizer.model"))
    assert checkpoint.load_tokenizer().encode("百川", control=True) == oracle.encode("百川")


@pytest.mark.parametrize("layout", ["llama", "baichuan"])
@pytest.mark.parametrize("kind", ["baichuan1", "baichuan2"])
@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_and_reopened_is_the_same_bit_for_bit(tmp_path: Path, layout, kind: str, bits: int, dtype):
    write_baichuan_folder(tmp_path / "source", int(kind[-1]), dtype=torch.bfloat16)
    decoder = load_decoder(open_folder(tmp_path / "source"), dtype, CPU, bits)
    save_folder(tmp_path / "saved", DecoderSource(decoder), None, Extras(), layout)
    checkpoint = open_folder(tmp_path / "saved")
    assert checkpoint.bits == bits
    assert checkpoint.config == decoder.config
    again = load_decoder(checkpoint, dtype, CPU)
    ids = build_ids(512)
    with torch.inference_mode():
        assert torch.equal(again(ids), decoder(ids))


@pytest.mark.parametrize("layout", ["llama", "baichuan"])
def test_an_eight_bit_folder_loads_as_sixteen(tmp_path: Path, layout):
    write_baichuan_folder(tmp_path / "source")
    small = load_decoder(open_folder(tmp_path / "source"), torch.float32, CPU, 8)
    save_folder(tmp_path / "saved", DecoderSource(small), None, Extras(), layout)
    wide = load_decoder(open_folder(tmp_path / "saved"), torch.float32, CPU, 16)
    linears = {name: module for name, module in small.named_modules() if isinstance(module, Int8Linear)}
    assert len(linears) == 14
    for name, module in linears.items():
        assert torch.equal(wide.get_submodule(name).weight, dequantize_rows(module.weight, module.weight_scale))
    ids = build_ids(512)
    with torch.inference_mode():
        torch.testing.assert_close(wide(ids), small(ids), rtol=1e-4, atol=1e-4)


def test_eight_bits_are_named_as_compressed_tensors_names_them(tmp_path: Path):
    _, saved = open_both(tmp_path, "llama", bits=8)
    quantization = json.loads((saved / "config.json").read_text())["quantization_config"]
    assert (quantization["quant_method"], quantization["format"]) == ("compressed-tensors", "int-quantized")
    name = "model.layers.1.mlp.down_proj.weight"
    with safe_open(saved / "model.safetensors", framework="pt") as file:
        assert file.get_tensor(name).dtype == torch.int8
        assert file.get_tensor(f"{name}_scale").shape == (64, 1)
        assert file.get_tensor("lm_head.weight").dtype == torch.float32


@pytest.mark.parametrize("bits", [16, 8])
def test_any_flipped_byte_of_the_data_is_noticed(tmp_path: Path, bits: int):
    write_llama_folder(tmp_path / "source")
    decoder = load_decoder(open_folder(tmp_path / "source"), torch.bfloat16, CPU, bits)
    saved = tmp_path / "saved"
    save_folder(saved, DecoderSource(decoder), None, Extras())
    path = saved / "model.safetensors"
    content = path.read_bytes()
    rng = random.Random(bits)
    start = 8 + int.from_bytes(content[:8], "little")
    for position in [start, len(content) - 1, *(rng.randrange(start, len(content)) for _ in range(40))]:
        broken = bytearray(content)
        broken[position] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        assert f"{path} is damaged: the checksum of " in refusal(load_logits, saved)
    path.write_bytes(content)
    load_logits(saved)


def test_shards_open_in_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("chuan.checkpoints.save._SHARD_BYTES", 60_000)
    model, saved = open_both(tmp_path, "llama")
    shards = sorted(path.name for path in saved.glob("*.safetensors"))
    assert len(shards) > 3
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    table = json.loads((saved / "model.safetensors.index.json").read_text())
    assert sorted(set(table["weight_map"].values())) == shards
    assert table["metadata"]["total_size"] == sum(parameter.nbytes for parameter in model.decoder.parameters())
    twin = LlamaForCausalLM.from_pretrained(saved, dtype=torch.float32).eval()
    assert difference_of_logits(open_folder(saved), twin) <= 1e-5
    assert difference_of_logits(open_folder(tmp_path / "source"), twin) <= 1e-5


def build_tiny() -> Decoder:
    return Decoder(ModelConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))


def test_an_occupied_folder_is_refused_and_left_alone(tmp_path: Path):
    target = tmp_path / "model"
    target.mkdir()
    save_folder(target, DecoderSource(build_tiny()), None, Extras())  # an empty one is fine
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    for beside_others in (False, True):
        message = refusal(save_folder, target, DecoderSource(build_tiny()), None, Extras(), "llama", beside_others)
        assert message == f"{target} is there already and not empty; choose another folder or remove it"
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert "is there already" in refusal(
        save_folder, target / "config.json", DecoderSource(build_tiny()), None, Extras()
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_goes_beside_a_tokenizer(tmp_path: Path):
    (tmp_path / "tokenizer.model").write_bytes(b"mine")
    assert "is there already" in refusal(save_folder, tmp_path, DecoderSource(build_tiny()), None, Extras())
    save_folder(tmp_path, DecoderSource(build_tiny()), None, Extras(), beside_others=True)
    assert (tmp_path / "tokenizer.model").read_bytes() == b"mine"
    load_logits(tmp_path)


def test_files_are_readable_by_all(tmp_path: Path):
    saved = tmp_path / "model"
    save_folder(saved, DecoderSource(build_tiny()), None, Extras())
    assert saved.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in saved.iterdir()} == {0o644}


FULL_DISK = """
import resource, signal, sys
import chuan
from chuan.errors import ChuanError
model = chuan.load(sys.argv[1], device="cpu", dtype="float32")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    model.save(sys.argv[2])
except ChuanError as error:
    print(error)
"""


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path):
    write_llama_folder(tmp_path / "source")
    out = tmp_path / "out"
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "source"), str(out / "model")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(f"{out / 'model'} was not written: ")
    assert done.stdout.endswith(
        ": File too large; nothing is left of it, put that right or choose another place and try again\n"
    )
    assert len(done.stdout.splitlines()) == 1
    assert list(out.iterdir()) == []


# The tokenizer is written after the weights; this one never comes back.
KILLED = """
import signal, sys
import chuan
model = chuan.load(sys.argv[1], device="cpu", dtype="float32")
def wait():
    print("in the middle", flush=True)
    signal.pause()
model.tokenizer.model_file = wait
model.save(sys.argv[2])
"""


def test_a_killed_save_leaves_no_model_of_that_name(tmp_path: Path):
    write_llama_folder(tmp_path / "source")
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(tmp_path / "source"), str(out / "model")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "in the middle\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    (left,) = out.iterdir()
    assert left.name.startswith(".model.")  # hidden
    assert (left / "model.safetensors").is_file()
    model = chuan.load(tmp_path / "source", device="cpu", dtype="float32")
    load_logits(model.save(out / "model"))
