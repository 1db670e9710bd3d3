"""GGUF files: sound ones against transformers, and headers that lie."""

import json
import random
import struct
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from chuan.checkpoints.gguf import open_gguf
from chuan.inference.load import load, open_checkpoint
from tests.support.folders import CHATML, CONTROL, train_byte_level, write_tiny_gguf
from tests.support.loading import attempt, difference_of_logits, load_logits, refusal

KINDS = ["F32", "F16", "Q8_0", "Q4_0"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_tiny_gguf(tmp_path / "tiny.gguf", "Q4_0", num_hidden_layers=1)
    return tmp_path / "tiny.gguf"


def open_whole(path: Path) -> torch.Tensor:
    """All that a user's load does."""
    open_gguf(path).load_tokenizer().encode("the river 百川")
    return load_logits(path)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_transformers_with_the_rounded_weights(tmp_path: Path, kind):
    twin = write_tiny_gguf(tmp_path / "a.gguf", kind)
    assert difference_of_logits(open_gguf(tmp_path / "a.gguf"), twin) <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_equals_transformers_own_reader(tmp_path: Path, kind):
    write_tiny_gguf(tmp_path / "a.gguf", kind)
    twin = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32).eval()
    assert isinstance(twin, LlamaForCausalLM)
    assert difference_of_logits(open_gguf(tmp_path / "a.gguf"), twin) <= 1e-5


def test_tied_embeddings(tmp_path: Path):
    twin = write_tiny_gguf(tmp_path / "a.gguf", "Q8_0", tie_word_embeddings=True)
    checkpoint = open_gguf(tmp_path / "a.gguf")
    assert checkpoint.config.tie_word_embeddings
    assert difference_of_logits(checkpoint, twin) <= 1e-5


def test_the_header_describes_the_model(path: Path):
    checkpoint = open_gguf(path)
    assert (checkpoint.kind, checkpoint.bits, checkpoint.role_ids) == ("GGUF, Q4_0", 16, None)
    assert checkpoint.chat_template == CHATML
    assert checkpoint.special == {"bos_token": CONTROL[1], "eos_token": CONTROL[2]}
    assert checkpoint.generation_config == {"bos_token_id": 1, "eos_token_id": 2}
    assert checkpoint.config.max_position_embeddings == 256
    tokenizer, backend = checkpoint.load_tokenizer(), train_byte_level()
    for text in ("the river runs", "温故而知新 😀\n\t 12", "<|im_end|>x"):
        assert tokenizer.encode(text, control=True) == backend.encode(text).ids
    assert 2 not in tokenizer.encode("<|im_end|>x")


def llama3_factors(scaling: dict) -> np.ndarray:
    """What llama.cpp's converter stores: by how much each frequency is slowed."""
    config = gguf_config(scaling)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")
    plain = 1.0 / (scaling["rope_theta"] ** (torch.arange(0, 16, 2).float() / 16))
    return (plain / scaled).numpy()


def gguf_config(scaling: dict):
    from transformers import LlamaConfig

    return LlamaConfig(hidden_size=64, num_attention_heads=4, rope_parameters=scaling)


@pytest.mark.parametrize("factor", [8.0, 16.0, 32.0])
def test_llama3_scaling_is_recognised(tmp_path: Path, factor: float):
    scaling = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": factor, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    factors = llama3_factors(scaling)
    assert factors.min() == 1
    assert factors.max() == pytest.approx(factor)
    twin = write_tiny_gguf(tmp_path / "a.gguf", rope_factors=factors, rope_parameters=scaling)
    checkpoint = open_gguf(tmp_path / "a.gguf")
    assert checkpoint.config.rope_scaling is not None
    assert checkpoint.config.rope_scaling.rope_type == "llama3"
    assert difference_of_logits(checkpoint, twin) <= 1e-5


@pytest.mark.parametrize("factors", [np.full(8, 2.0), np.ones(4), np.full(8, np.nan)])
def test_other_rope_factors_are_refused(tmp_path: Path, factors: np.ndarray):
    write_tiny_gguf(tmp_path / "a.gguf", rope_factors=factors)
    assert "carries RoPE factors that are not Llama 3's" in refusal(open_gguf, tmp_path / "a.gguf")


def test_no_tokenizer_is_refused(tmp_path: Path):
    write_tiny_gguf(tmp_path / "a.gguf", tokenizer=False)
    assert f"{tmp_path}/a.gguf carries no tokenizer" in refusal(open_gguf, tmp_path / "a.gguf")


def test_other_architectures_are_refused(tmp_path: Path):
    write_tiny_gguf(tmp_path / "a.gguf", architecture="gpt2")
    assert "holds the architecture 'gpt2'; Chuan opens GGUF of the llama family" in refusal(
        open_gguf, tmp_path / "a.gguf"
    )


def test_a_missing_file_and_a_wrong_magic_are_refused(path: Path):
    assert f"{path}x is missing; check the path" in refusal(open_gguf, path.with_name("tiny.ggufx"))
    for content in (b"", b"GG", b"GGML" + path.read_bytes()[4:], b"\0" * 100, b"PK\x03\x04" * 20):
        path.write_bytes(content)
        assert f"{path} is not a sound GGUF file" in refusal(open_gguf, path)


def test_truncated_files_are_refused(path: Path):
    content = path.read_bytes()
    reader = gguf.GGUFReader(path)
    end = max(tensor.data_offset + tensor.n_bytes for tensor in reader.tensors)
    rng = random.Random(0)
    lengths = [*range(0, 200, 7), reader.data_offset, reader.data_offset + 1, end - 1]
    lengths += rng.choices(range(reader.data_offset), k=60) + rng.choices(range(reader.data_offset, end), k=40)
    del reader
    for length in lengths:
        path.write_bytes(content[:length])
        message = refusal(open_gguf, path)
        assert f"{path} is not a sound GGUF file" in message
        assert "fetch it again" in message


def test_a_nan_scale_is_refused(path: Path):
    reader = gguf.GGUFReader(path)
    tensor = next(tensor for tensor in reader.tensors if tensor.name == "blk.0.ffn_up.weight")
    broken = bytearray(path.read_bytes())
    broken[tensor.data_offset : tensor.data_offset + 2] = np.float16("nan").tobytes()
    path.write_bytes(broken)
    assert "blk.0.ffn_up.weight" in refusal(load_logits, path)


def test_a_type_that_cannot_be_dequantized_is_refused(path: Path):
    """Same bytes a block as Q4_0, so that only the reading of it fails."""
    broken = bytearray(path.read_bytes())
    field = next(t.field for t in gguf.GGUFReader(path).tensors if t.name == "token_embd.weight")
    at = field.offset + sum(part.nbytes for part in field.parts[:4])
    assert struct.unpack_from("<I", broken, at) == (gguf.GGMLQuantizationType.Q4_0,)
    types = gguf.GGMLQuantizationType
    for kind in (types.IQ4_NL, types.Q8_1, types.I8, types.MXFP4, 999):
        struct.pack_into("<I", broken, at, kind)
        path.write_bytes(broken)
        found = attempt(open_whole, path)
        if kind == types.IQ4_NL:  # this one the library knows
            assert isinstance(found, torch.Tensor)
        else:
            assert str(path) in found


def rewrite(path: Path, **values: object) -> None:
    """The file with other values in its header; `__` stands for a dot."""
    reader = gguf.GGUFReader(path)
    fields = {name: (field.contents(), field.types[0]) for name, field in reader.fields.items()}
    tensors = [(tensor.name, np.array(tensor.data), tensor.tensor_type) for tensor in reader.tensors]
    kinds = {str: gguf.GGUFValueType.STRING, int: gguf.GGUFValueType.UINT32, list: gguf.GGUFValueType.ARRAY}
    fields |= {name.replace("__", "."): (value, kinds[type(value)]) for name, value in values.items()}
    writer = gguf.GGUFWriter(path, "llama")
    for name, (value, kind) in fields.items():
        if kind == gguf.GGUFValueType.ARRAY:
            writer.add_array(name, value)
        elif not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, value, kind)
    for name, data, kind in tensors:
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("wrong", ["a", None])
def test_scores_that_are_no_numbers_are_refused(path: Path, wrong: object):
    size = train_byte_level().get_vocab_size()
    scores = {} if wrong is None else {"tokenizer__ggml__scores": [wrong] * size}
    rewrite(path, tokenizer__ggml__model="llama", **scores)
    assert "carries no scores for its tokenizer" in refusal(open_gguf(path).load_tokenizer)


def test_pieces_that_are_no_texts_are_refused(path: Path):
    rewrite(path, tokenizer__ggml__tokens=list(range(train_byte_level().get_vocab_size())))
    assert "carries no tokenizer" in refusal(open_gguf, path)


def test_a_part_of_a_model_says_so(path: Path):
    rewrite(path, split__count=3, split__no=0)
    assert f"{path} is one of 3 parts of a model; join them" in refusal(open_gguf, path)
    for number in (1, 2):
        (path.parent / f"m-0000{number}-of-00002.gguf").write_bytes(path.read_bytes())
    path.unlink()
    assert f"{path.parent} holds a model in parts; join them" in refusal(open_checkpoint, path.parent)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"0__repo_url": "https://huggingface.co/meta-llama/Llama-2-7b"}, ["meta-llama/Llama-2-7b"]),
        ({"0__organization": "me", "0__name": "tuned", "1__organization": "a", "1__name": "b"}, ["me/tuned", "a/b"]),
        ({"0__organization": "Meta Llama", "0__name": "Llama 2 7b"}, None),
        ({"0__repo_url": "https://huggingface.co/a/b\n\n## Evil"}, None),
    ],
)
def test_base_models_are_hub_ids(path: Path, values: dict[str, str], expected: list[str] | None):
    rewrite(path, **{f"general__base_model__{key}": value for key, value in values.items()}, general__name="a/b")
    assert open_gguf(path).read_card().get("base_model") == expected


def test_a_licence_of_a_header_is_one_short_line(path: Path):
    rewrite(path, general__license__name="Evil\n\n## Intended use", general__license="x" * 201)
    assert open_gguf(path).read_card() == {"license_name": "Evil ## Intended use"}


def build_lies(path: Path) -> dict[str, bytes]:
    """The file with one number of its header changed, by what was changed."""
    good, fields, tensors = path.read_bytes(), gguf.GGUFReader(path).fields, gguf.GGUFReader(path).tensors
    places: dict[str, tuple[int, str]] = {"tensor_count": (8, "<Q"), "kv_count": (16, "<Q"), "key length": (24, "<Q")}
    for key in ("tokens", "token_type", "merges"):
        start = fields[f"tokenizer.ggml.{key}"].offset + 8 + len(f"tokenizer.ggml.{key}")
        places |= {f"{key} value type": (start, "<I"), f"{key} item type": (start + 4, "<I")}
        places[f"{key} count"] = (start + 8, "<Q")
        if key != "token_type":
            places[f"{key} first length"] = (start + 16, "<Q")
    for name in ("token_embd.weight", "output_norm.weight"):
        field = next(tensor.field for tensor in tensors if tensor.name == name)
        at = field.offset
        for label, part in zip(("name length", "name", "n_dims", "dims", "type", "offset"), field.parts, strict=True):
            if label != "name":
                places[f"{name} {label}"] = (at, "<I" if part.dtype.itemsize == 4 else "<Q")
            at += part.nbytes
    lies = {}
    for label, (at, kind) in places.items():
        old = struct.unpack_from(kind, good, at)[0]
        limit = 2 ** (8 * struct.calcsize(kind))
        for value in (0, old + 1, 9, 2**31 - 1, 2**40, 2**62 + 1, limit - 1):
            if 0 <= value < limit and value != old:
                lie = bytearray(good)
                struct.pack_into(kind, lie, at, value)
                lies[f"{label} {old} -> {value}"] = bytes(lie)
    return lies


OPEN_LIES = """
import json, resource, sys, time
from pathlib import Path
import torch
from chuan.checkpoints.checkpoint import load_decoder
from chuan.checkpoints.gguf import open_gguf
from chuan.errors import ChuanError

def open_whole(path):
    checkpoint = open_gguf(path)
    checkpoint.load_tokenizer()
    load_decoder(checkpoint, torch.float32, torch.device("cpu"))

open_whole(Path(sys.argv[1]))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)
slowest, loaded = 0.0, []
for path in sorted(Path(sys.argv[2]).iterdir()):
    started = time.monotonic()
    try:
        open_whole(path)
        loaded.append(path.name)
    except ChuanError as error:
        assert str(path) in str(error), error
        assert str(error).isprintable(), error
    slowest = max(slowest, time.monotonic() - started)
print(json.dumps({"slowest": slowest, "loaded": loaded}))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_lies_cost_neither_time_nor_memory(path: Path, tmp_path: Path):
    """In a process that may take 256 MB more than a sound file took."""
    lies = build_lies(path)
    assert len(lies) > 100
    folder = tmp_path / "lies"
    folder.mkdir()
    for index, content in enumerate(lies.values()):
        (folder / f"{index:04}.gguf").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", OPEN_LIES, str(path), str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    loaded = [label for index, label in enumerate(lies) if f"{index:04}.gguf" in result["loaded"]]
    print(f"{len(lies)} lies, the slowest {result['slowest']:.2f} s; loaded all the same: {loaded}")
    assert result["slowest"] < 5
    # Which kind of 32-bit numbers a list holds can be said otherwise of a readable file.
    assert all(label.startswith("token_type item type 5") for label in loaded), loaded


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_edit_is_refused_or_loads(path: Path, data: st.DataObject):
    content = path.read_bytes()
    header = gguf.GGUFReader(path).data_offset
    broken = bytearray(content)
    positions = st.integers(0, header - 1) | st.integers(0, len(content) - 1)
    for position, value in data.draw(st.lists(st.tuples(positions, st.integers(0, 255)), min_size=1, max_size=4)):
        broken[position] = value
    other = path.with_name("edited.gguf")
    other.write_bytes(broken)
    started = time.monotonic()
    attempt(open_whole, other)
    assert time.monotonic() - started < 10


def test_chuan_load_takes_the_path(path: Path):
    assert load(path, device="cpu").generate("the river", max_new_tokens=2) is not None
