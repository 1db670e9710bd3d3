"""Fine-tuning from conversations to a folder that other programs open; every kind, stopped and spread over ranks."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoModelForCausalLM, AutoTokenizer

import chuan
from chuan.errors import ChuanError
from chuan.inference.merge import merge
from chuan.training.finetune import finetune, run_finetune
from chuan.training.watch import read_log
from tests.support.tiny_chat import read_tiny_chat, write_tiny_chat
from tests.support.tiny_run import curve
from tests.support.torchrun import torchrun

LORA = ("lora.rank=4", "lora.alpha=8.0", "lora.dropout=0.1")


@pytest.fixture
def path(tmp_path) -> Path:
    return write_tiny_chat(tmp_path)


def result_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*/*model.safetensors")))


def run_whole(path: Path, name: str, *overrides: str) -> Path:
    folder = path.parent / name
    assert finetune(read_tiny_chat(path, f"output={folder}", *overrides)) is not None
    return folder


@pytest.mark.parametrize("layout", ["llama", "baichuan"])
def test_a_model_learns_to_answer_and_everyone_opens_it(tmp_path, layout):
    path = write_tiny_chat(tmp_path, layout)
    folder = run_whole(path, "whole", "steps=200", "state.every=200", "data.validation=0.0")
    losses = [loss for _, loss in curve(folder)]
    assert losses[-1] < 0.5 * losses[0]
    facts = json.loads((folder / "data.json").read_text())
    assert (facts["records"], facts["training"] + facts["validation"]) == (60, 60)
    assert (folder / "loss.png").stat().st_size > 5000
    model = chuan.load(folder / "model", dtype="float32")
    conversations = [json.loads(line)["messages"] for line in (tmp_path / "chat.jsonl").read_text().splitlines()[:10]]
    replies = [
        str(model.chat(asked[:1], temperature=0.0, repetition_penalty=1.0, max_new_tokens=40))
        for asked in conversations
    ]
    right = [reply.strip() == asked[1]["content"] for reply, asked in zip(replies, conversations, strict=True)]
    assert sum(right) >= 8, replies
    theirs = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(folder / "model").apply_chat_template(
        conversations[0][:1], add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    torch.testing.assert_close(model.logits(ids[0].tolist()), theirs(ids).logits[0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("overrides", [(), LORA, (*LORA, "lora.bits=8")])
def test_three_steps_and_three_are_six_bit_for_bit(path, overrides):
    whole = run_whole(path, "whole", *overrides)
    recipe = read_tiny_chat(path, *overrides)
    assert finetune(recipe, stop_after=3) is None
    state = FileSystemReader(next((path.parent / "run" / "state").iterdir())).read_metadata().state_dict_metadata
    if overrides:  # a frozen base is on disk already
        assert all("lora_" in name for name in state if name.startswith("model."))
    finetune(recipe)
    assert curve(path.parent / "run") == curve(whole)
    expected = result_of(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in result_of(path.parent / "run").items())


@pytest.mark.parametrize("overrides", [(), LORA[:2], ("parallel.compile=true", *LORA[:2])])
def test_two_ranks_end_where_one_does(path, overrides):
    whole = run_whole(path, "whole", *[item for item in overrides if "compile" not in item])
    folder = path.parent / "two"
    settings = [part for value in (f"output={folder}", *overrides) for part in ("--set", value)]
    done = torchrun(2, "-m", "chuan", "finetune", str(path), *settings)
    assert done.returncode == 0, done.stdout
    torch.testing.assert_close(torch.tensor(curve(folder)), torch.tensor(curve(whole)), rtol=1e-5, atol=0)


def test_an_adapter_learns_and_its_merged_model_has_its_loss(path):
    folder = run_whole(path, "whole", "steps=80", "optimizer.learning_rate=0.02", "state.every=80", *LORA[:2])
    losses = [loss for _, loss in curve(folder)]
    assert losses[-1] < 0.7 * losses[0]
    merge(folder / "adapter", path.parent / "merged")
    last = [entry["validation_bits_per_byte"] for entry in read_log(folder) if "validation_bits_per_byte" in entry][-1]
    again = run_whole(
        path,
        "again",
        f"base={path.parent / 'merged'}",
        "steps=1",
        "watch.validate_every=1",
        "optimizer.learning_rate=1e-12",
    )
    (found,) = [entry["validation_bits_per_byte"] for entry in read_log(again) if "validation_bits_per_byte" in entry]
    assert found == pytest.approx(last, rel=1e-5)


def test_epochs_set_the_steps(path):
    folder = run_whole(path, "whole", "steps=0", "epochs=1.5")
    rows = json.loads((folder / "data.json").read_text())["rows"]
    assert len(curve(folder)) == -(-3 * rows // 8)


def test_a_base_without_a_chat_format_gets_one(tmp_path):
    path = write_tiny_chat(tmp_path)
    config = tmp_path / "base/tokenizer_config.json"
    template = json.loads(config.read_text())["chat_template"]
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"chat_template": None, "eos_token": "<|endoftext|>"})
    )
    (tmp_path / "base/generation_config.json").write_text('{"eos_token_id": 0}')
    (tmp_path / "chat.jinja").write_text(template)
    with pytest.raises(ChuanError, match="has no chat format; set chat.template"):
        finetune(read_tiny_chat(path))
    chosen = f"chat.template={tmp_path / 'chat.jinja'}"
    folder = run_whole(path, "whole", chosen)
    assert chuan.load(folder / "model").chat([{"role": "user", "content": "a"}], max_new_tokens=2) is not None
    assert json.loads((folder / "model/generation_config.json").read_text())["eos_token_id"] == [2, 0]
    merge(run_whole(path, "adapted", chosen, *LORA) / "adapter", tmp_path / "merged")
    assert (tmp_path / "merged/chat_template.jinja").read_text() == template
    assert json.loads((tmp_path / "merged/generation_config.json").read_text())["eos_token_id"] == [2, 0]


def test_marks_of_baichuans_format_are_named_by_their_pieces(tmp_path):
    path = write_tiny_chat(tmp_path, "baichuan")
    (tmp_path / "base/generation_config.json").write_text("{}")
    marks = ("chat.user=<reserved_3>", "chat.assistant=<reserved_4>")
    folder = run_whole(path, "whole", *marks)
    generation = json.loads((folder / "model/generation_config.json").read_text())
    names = chuan.load(folder / "model").tokenizer.control_pieces
    assert generation["user_token_id"] == names["<reserved_3>"]
    assert generation["assistant_token_id"] == names["<reserved_4>"]
    with pytest.raises(ChuanError, match="no control piece"):
        finetune(read_tiny_chat(path, "chat.user=river", "chat.assistant=<reserved_4>"))


def test_bad_records_are_counted_named_and_left_out_up_to_a_share(path, capsys):
    with (path.parent / "chat.jsonl").open("a") as file:
        file.write('{"messages": []}\n{\n')
    with pytest.raises(ChuanError, match=r"2 of 62 records are of no use.*line 61"):
        finetune(read_tiny_chat(path))
    folder = run_whole(path, "whole", "data.bad=0.1")
    facts = json.loads((folder / "data.json").read_text())
    assert (facts["records"], facts["bad"], len(facts["first_bad"])) == (62, 2, 2)
    assert "2 of 62 records" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["data.length=3", "data.bad=1.0"], "no conversation to learn from"),
        (["data.length=3"], "no answer begins in its first 3 tokens"),
        (["data.length=1000"], "256 tokens of .*context"),
        (['data.files=["gone.jsonl"]'], "gone.jsonl is not there"),
        (["base=gone"], "gone"),
        (["lora.rank=4", "parallel.tensor=2"], "lora does not work with parallel.tensor"),
        (["lora.bits=4", "parallel.compile=true"], "does not work with lora.bits"),
        (["lora.targets=[]"], "lora.targets"),
        (["optimizer.learning_rate=nan"], "learning_rate"),
        (["optimizer.learning_rate=0"], "learning_rate"),
        (["chat.user=x"], "chat"),
        (["chat.template=gone.jinja"], "gone.jinja cannot be read"),
    ],
)
def test_what_cannot_be_done_is_one_line(path, overrides, reason):
    with pytest.raises(ChuanError, match=reason):
        finetune(read_tiny_chat(path, *overrides))
    assert not (path.parent / "run" / "model").exists()


def test_the_verb_shows_what_is_learned(path, capsys):
    assert run_finetune(str(path), [], show=2) == 0
    shown = capsys.readouterr().out
    first = json.loads((path.parent / "chat.jsonl").read_text().splitlines()[0])["messages"]
    asked, answered = (turn["content"] for turn in first)
    assert f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n⟦{answered}<|im_end|>\n⟧" in shown
    assert shown.count("learned") == 2
    assert not (path.parent / "run").exists()
