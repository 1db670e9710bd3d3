"""Files of weights that are broken, incomplete or hostile."""

import json
import os
import random
import shutil
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from chuan.checkpoints.checkpoint import load_decoder
from chuan.checkpoints.folder import open_folder
from chuan.checkpoints.weights import open_tensor_files
from chuan.inference.convert import convert
from tests.support.folders import write_baichuan_folder, write_llama_folder
from tests.support.loading import CPU, attempt, difference_of_logits, load_logits, refusal

NORM = "model.norm.weight"


class MarksOnLoad:
    """A pickle that makes a file when it is opened by something that runs its code."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    write_llama_folder(tmp_path, num_hidden_layers=1)
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write_llama_folder(tmp_path, "sharded-safetensors")
    return tmp_path


def test_a_folder_without_weights_is_refused(tmp_path: Path):
    assert f"{tmp_path} holds no weights" in refusal(open_tensor_files, tmp_path)


def test_safetensors_come_before_bin(llama: Path):
    (llama / "pytorch_model.bin").write_bytes(b"broken")
    load_logits(llama)


def test_one_file_comes_before_an_index_as_in_transformers(sharded: Path):
    expected = load_logits(sharded)
    write_llama_folder(sharded / "other", seed=5)
    (sharded / "other" / "model.safetensors").rename(sharded / "model.safetensors")
    twin = LlamaForCausalLM.from_pretrained(sharded, dtype=torch.float32).eval()
    assert difference_of_logits(open_folder(sharded), twin) <= 1e-5
    assert not torch.allclose(load_logits(sharded), expected)


def test_what_may_not_be_read_says_so(llama: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.open", refuse)  # the tests may run as root, who may read all
    assert "cannot be read: you have no permission" in refusal(open_tensor_files, llama)
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    assert "cannot be read: you have no permission" in refusal(open_tensor_files, llama)


def test_shards_of_two_models_are_refused(tmp_path: Path):
    """Of another precision, of the other generation, and with a tensor twice."""
    one, half, first = tmp_path / "one", tmp_path / "half", tmp_path / "first"
    write_baichuan_folder(one, 2, "sharded-safetensors")
    write_baichuan_folder(half, 2, "sharded-safetensors", dtype=torch.bfloat16)
    write_baichuan_folder(first, 1, "sharded-safetensors")
    left, right = (path.name for path in sorted(one.glob("*.safetensors")))
    kept = (one / right).read_bytes()
    shutil.copy(half / right, one)
    assert "shards of two models; fetch one whole set" in refusal(load_logits, one)
    shutil.copy(first / right, one)
    assert "which its index promises; fetch it again" in refusal(load_logits, one)
    (one / right).write_bytes(kept)
    save_file(load_file(one / right) | {NORM: torch.ones(64)}, one / right)
    save_file(load_file(one / left) | {NORM: torch.ones(64)}, one / left)
    assert "shards of two models or versions" in refusal(load_logits, one)


def test_truncated_safetensors_are_refused(llama: Path):
    path = llama / "model.safetensors"
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    rng = random.Random(0)
    for length in (
        *range(12),
        header - 1,
        header,
        header + 1,
        len(content) - 1,
        *rng.choices(range(len(content)), k=40),
    ):
        path.write_bytes(content[:length])
        message = refusal(load_logits, llama)
        assert f"{path} is damaged or cut short" in message
        assert "fetch it again" in message


def test_a_changed_byte_of_a_header_is_refused_or_harmless(llama: Path):
    path = llama / "model.safetensors"
    expected, content = load_logits(llama), path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    rng = random.Random(0)
    refused = 0
    for position in range(header):
        broken = bytearray(content)
        broken[position] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        found = attempt(load_logits, llama)
        refused += isinstance(found, str)
        assert str(llama) in found if isinstance(found, str) else torch.equal(found, expected), position
    assert refused > 0.9 * header


@pytest.mark.parametrize("dtype", ["I32", "U32", "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL", "I64", "F64", "C64", "XX"])
def test_another_type_in_the_header_is_refused_or_read(llama: Path, dtype: str):
    """Sizes that do not fit are damage; integers are no weights; other floats are."""
    path = llama / "model.safetensors"
    tensors = load_file(path)
    width = {"F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1, "I8": 1, "U8": 1, "I64": 8, "F64": 8, "C64": 8}.get(dtype, 4)
    carriers = {1: torch.uint8, 4: torch.float32, 8: torch.float64}
    save_file(tensors | {NORM: torch.zeros(64, dtype=carriers[width])}, path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header[NORM]["dtype"] = dtype
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    if dtype.startswith("F"):
        assert load_logits(llama).isfinite().all()
    else:
        assert str(path) in refusal(load_logits, llama)


@pytest.mark.parametrize("text", ["[", "{}x", '{"a": 1e999}', '{"a": "b"}', "[1]", "[" * 100_000, '{"a": null}'])
def test_unreadable_checksums_are_damage(llama: Path, text: str):
    path = llama / "model.safetensors"
    save_file(load_file(path), path, metadata={"crc32": text})
    assert f"{path} is damaged: its checksums cannot be read" in refusal(load_logits, llama)


def test_a_missing_shard_is_refused(sharded: Path):
    path = sharded / "model-00002-of-00003.safetensors"
    path.unlink()
    assert f"the shard {path} is missing; fetch it again" in refusal(load_logits, sharded)


@pytest.mark.parametrize(
    "file", ["../x", "/etc/passwd", "sub/x.safetensors", "..", ".", "", "a\\b", "a\0b", 5, None, []]
)
def test_an_index_that_leads_outside_is_refused(sharded: Path, file: object):
    path = sharded / "model.safetensors.index.json"
    table = json.loads(path.read_text())
    table["weight_map"][NORM] = file
    path.write_text(json.dumps(table))
    message = refusal(load_logits, sharded)
    assert f"{path} names a file outside of its folder" in message
    assert "do not trust it" in message


@pytest.mark.parametrize("file", ["x" * 5000, "a\nb", "\ud800", "\x1b[31m"], ids=["long", "newline", "half", "escape"])
def test_an_index_with_an_odd_name_is_one_line(sharded: Path, file: str):
    path = sharded / "model.safetensors.index.json"
    table = json.loads(path.read_text())
    table["weight_map"][NORM] = file
    path.write_text(json.dumps(table))
    message = refusal(load_logits, sharded)
    assert str(sharded) in message
    message.encode()


@pytest.mark.parametrize("table", [{}, {"weight_map": None}, {"weight_map": []}, {"weight_map": {}}])
def test_an_index_without_a_map_is_refused(sharded: Path, table: dict):
    path = sharded / "model.safetensors.index.json"
    path.write_text(json.dumps(table))
    assert f"{path} has no weight_map; fetch it again" in refusal(load_logits, sharded)


def test_an_index_that_promises_too_much_is_refused(sharded: Path):
    path = sharded / "model.safetensors.index.json"
    table = json.loads(path.read_text())
    table["weight_map"]["model.more"] = table["weight_map"][NORM]
    path.write_text(json.dumps(table))
    assert "lacks model.more (and 0 more), which its index promises" in refusal(load_logits, sharded)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_index_is_refused_or_loads(sharded: Path, data: st.DataObject):
    path = sharded / "model.safetensors.index.json"
    table = path.read_bytes()
    try:
        edited = json.loads(table)
        names = st.sampled_from([*sorted(set(edited["weight_map"].values())), "x", "../x"]) | st.text()
        keys = st.sampled_from(sorted(edited["weight_map"])) | st.text()
        edited["weight_map"] |= data.draw(st.dictionaries(keys, names | st.none() | st.integers(), max_size=3))
        for key in data.draw(st.lists(st.sampled_from(sorted(edited["weight_map"])), max_size=2)):
            edited["weight_map"].pop(key, None)
        path.write_text(json.dumps(edited))
        attempt(load_logits, sharded)
    finally:
        path.write_bytes(table)


def test_a_pickle_that_carries_code_does_not_run_it(tmp_path: Path):
    folder, mark = tmp_path / "model", tmp_path / "mark"
    state = write_baichuan_folder(folder, weights="bin")
    path = folder / "pytorch_model.bin"
    for legacy in (False, True):
        for evil in (MarksOnLoad(mark), torch.nn.Linear(2, 2), Path("x")):
            torch.save(state | {"evil": evil}, path, _use_new_zipfile_serialization=not legacy)
            message = refusal(load_logits, folder)
            assert f"{path} is damaged, or holds more than tensors (a pickle can carry code)" in message
            assert not mark.exists()
    torch.save({"evil": MarksOnLoad(mark)}, path)
    torch.load(path, weights_only=False)  # the trap does work
    assert mark.exists()


def test_parameters_in_bin_files_are_tensors(tmp_path: Path):
    write_llama_folder(tmp_path / "a", "bin")
    path = tmp_path / "a" / "pytorch_model.bin"
    expected = load_logits(tmp_path / "a", 8)
    state = torch.load(path, weights_only=True)
    torch.save({name: torch.nn.Parameter(tensor) for name, tensor in state.items()}, path)
    assert torch.equal(load_logits(tmp_path / "a", 8), expected)
    assert not open_tensor_files(tmp_path / "a").read(NORM).requires_grad
    convert(tmp_path / "a", tmp_path / "m.gguf", gguf_type="q8_0")


@pytest.mark.parametrize(
    ("part", "tensor"),
    [
        ("shape", torch.tensor(5)),
        ("shape", torch.tensor([96.0, 64.0])),
        ("shape", torch.tensor([2**40, 2**40])),
        ("shape", torch.zeros(1 << 20, dtype=torch.int64)),
        ("packed", torch.tensor(5, dtype=torch.int32)),
        ("packed", torch.zeros(96 * 8, dtype=torch.int32)),
    ],
)
def test_groups_that_contradict_their_shape_are_one_line(tmp_path: Path, part: str, tensor: torch.Tensor):
    write_llama_folder(tmp_path / "a", dtype=torch.bfloat16)
    convert(tmp_path / "a", tmp_path / "few", bits=4)
    path = tmp_path / "few" / "model.safetensors"
    save_file(load_file(path) | {f"model.layers.0.mlp.up_proj.weight_{part}": tensor}, path)
    assert "does not fit its weight_shape and weight_scale" in refusal(load_logits, tmp_path / "few")


def test_bin_files_from_before_torch_1_6_are_read(tmp_path: Path):
    state = write_baichuan_folder(tmp_path, weights="bin")
    expected = load_logits(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(load_logits(tmp_path), expected)


@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_bin_is_refused(tmp_path: Path, legacy: bool):
    state = write_baichuan_folder(tmp_path, weights="bin")
    path = tmp_path / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    for length in (0, 1, 3, 4, 10, 100, len(content) - 1, *random.Random(0).choices(range(len(content)), k=30)):
        path.write_bytes(content[:length])
        assert str(path) in refusal(load_logits, tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch has doubts about the pickle protocols that this makes
def test_any_bin_is_refused_or_loads(tmp_path: Path):
    write_baichuan_folder(tmp_path, weights="bin")
    path = tmp_path / "pytorch_model.bin"
    content = path.read_bytes()
    rng = random.Random(0)
    outer = [*range(2500), *range(content.index(b"PK\x01\x02"), len(content))]  # the pickle, and the zip's directory
    for _ in range(300):
        broken = bytearray(content)
        for _ in range(rng.randint(1, 3)):
            broken[rng.choice(outer)] = rng.randrange(256)
        path.write_bytes(broken)
        attempt(load_logits, tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([torch.ones(2)], "holds no table of tensors"),
        ({"a": "row"}, "something other than a tensor at 'a'"),
        ({"model": {NORM: torch.ones(2)}}, "something other than a tensor at 'model'"),
        ({1: torch.ones(2)}, "something other than a tensor at 1"),
    ],
)
def test_bin_with_other_things_is_refused(tmp_path: Path, content: object, says: str):
    write_baichuan_folder(tmp_path, weights="bin")
    torch.save(content, tmp_path / "pytorch_model.bin")
    assert says in refusal(load_logits, tmp_path)


def test_a_shard_lost_from_a_bin_index_is_refused(tmp_path: Path):
    write_baichuan_folder(tmp_path, weights="sharded-bin")
    torch.save({NORM: torch.ones(64)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    assert "which its index promises; fetch it again" in refusal(load_logits, tmp_path)


def test_weights_are_read_one_at_a_time_by_name(llama: Path):
    weights = open_tensor_files(llama)
    stored = load_file(llama / "model.safetensors")
    assert weights.shapes == {name: tuple(tensor.shape) for name, tensor in stored.items()}
    assert all(torch.equal(weights.read(name), tensor) for name, tensor in stored.items())
    assert weights.locate(NORM) == str(llama / "model.safetensors")


def test_a_loaded_decoder_does_not_lean_on_the_file(llama: Path):
    decoder = load_decoder(open_folder(llama), torch.float32, CPU)
    before = decoder.model.norm.weight.clone()
    path = llama / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(8 + int.from_bytes(path.read_bytes()[:8], "little"))
        file.write(b"\0" * (path.stat().st_size - file.tell()))
    assert torch.equal(decoder.model.norm.weight, before)
    assert all(parameter.any() for parameter in decoder.parameters())
