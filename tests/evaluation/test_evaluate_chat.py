"""Questions as conversations, and replies: against transformers' templates and one request at a time."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import chuan
from chuan.errors import ChuanError
from chuan.evaluation.backends.backend import ChatLetterBackend, GenerationOptions, find_chat_letters
from chuan.evaluation.backends.chuan import ChuanBackend
from chuan.evaluation.backends.fingerprint import digest_weights
from chuan.evaluation.evaluate import build_plan, load_plan, run_plan
from chuan.evaluation.prompts import load_asks, render_prompt
from chuan.evaluation.protocols import find_protocol
from chuan.evaluation.runs import read_questions
from tests.evaluation.counting import CountingBackend
from tests.evaluation.tiny_data import build_row, write_ceval, write_many, write_mmlu
from tests.support.folders import write_baichuan_folder, write_llama_folder
from tests.support.tiny_tokenizer import train_tiny_sentencepiece

SAMPLE = ["snow is", "grass", "white", "None", "up", "B"]


@pytest.fixture(scope="module")
def chatml(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "model"
    twin = write_llama_folder(folder, max_position_embeddings=1024)
    return folder, twin, chuan.load(folder, dtype="float32", device="cpu")


def render(data: Path, benchmark: str, protocol: str, subject: str, split: str, shots: int):
    (ask,) = load_asks(benchmark, data, [subject], split, shots, None, False)
    return render_prompt(find_protocol(benchmark, protocol), ask, ask.demonstrations, True)


def test_conversations_to_the_byte(tmp_path: Path):
    write_mmlu(tmp_path, "high_school_physics", dev=[SAMPLE, SAMPLE], test=[SAMPLE])
    write_ceval(tmp_path, "law", dev=[SAMPLE], val=[SAMPLE])
    header = "The following are multiple choice questions (with answers) about  high school physics.\n\n"
    item = "snow is\nA. grass\nB. white\nC. None\nD. up\nAnswer:"
    assert render(tmp_path, "mmlu", "baichuan", "high_school_physics", "test", 2) == [
        {"role": "user", "content": header + item},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": item},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": item},
    ]
    assert render(tmp_path, "mmlu", "baichuan", "high_school_physics", "test", 0) == [
        {"role": "user", "content": header + item},
    ]
    header = "以下是中国关于法学考试的单项选择题，请选出其中的正确答案。"
    item = "snow is\nA. grass\nB. white\nC. None\nD. up\n答案："
    turns = [
        {"role": "user", "content": f"{header}\n\n{item}"},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": item},
    ]
    assert render(tmp_path, "ceval", "baichuan", "law", "val", 1) == turns
    system = {"role": "system", "content": f"你是一个中文人工智能助手，{header}"}
    assert render(tmp_path, "ceval", "official", "law", "val", 1) == [system, *turns]


@pytest.mark.parametrize("protocol", ["baichuan", "harness"])
def test_letters_are_read_where_the_answer_begins(tmp_path: Path, chatml, protocol):
    """The context holds four of the five demonstrations: whole turns are left out, the last first."""
    folder, twin, model = chatml
    write_many(tmp_path / "data", "mmlu", ["anatomy"], 12)
    plan = build_plan("mmlu", protocol, None, 5, None, "anatomy", tmp_path / "data", "chat")
    facts = run_plan(plan, load_plan(plan), ChuanBackend(model), tmp_path / "run")
    rows = {row["id"]: row for row in read_questions(tmp_path / "run")}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    letter_ids = [tokenizer(letter, add_special_tokens=False).input_ids[0] for letter in "ABCD"]
    for ask in load_asks("mmlu", tmp_path / "data", ["anatomy"], "test", 5, None, False):
        row = rows[ask.question.id]
        shots = ask.demonstrations[: 5 - row["dropped_demonstrations"]]
        messages = render_prompt(find_protocol("mmlu", protocol), ask, shots, True)
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert len(ids) <= 1024
        with torch.inference_mode():
            expected = twin(torch.tensor([ids])).logits[0, -1, letter_ids]
        assert list(row["scores"].values()) == pytest.approx(expected.tolist(), abs=1e-4)
    assert facts["mode"] == "chat"
    assert facts["note"]
    assert not facts["comparable"]


def test_what_does_not_fit_a_conversation_loses_whole_turns(tmp_path: Path):
    folder = tmp_path / "model"
    write_llama_folder(folder, max_position_embeddings=400)
    backend = ChuanBackend(chuan.load(folder, dtype="float32", device="cpu"))
    write_mmlu(
        tmp_path / "data",
        "anatomy",
        dev=[build_row("anatomy", n) for n in range(5)],
        test=[build_row("anatomy", 7), ["long " * 500, "1", "2", "3", "4", "A"]],
    )
    plan = build_plan("mmlu", "baichuan", None, 5, None, "anatomy", tmp_path / "data", "chat")
    facts = run_plan(plan, load_plan(plan), backend, tmp_path / "run")
    first, second = read_questions(tmp_path / "run")
    assert 0 < first["dropped_demonstrations"] < 5
    assert (facts["too_long"], second["dropped_demonstrations"], second["correct"]) == (1, 5, False)


@pytest.mark.parametrize("generation", [1, 2])
def test_the_format_of_baichuan(tmp_path: Path, generation):
    """Nothing is dropped silently, though the published format drops old rounds."""
    write_baichuan_folder(tmp_path / "m", generation, model_file=train_tiny_sentencepiece(dummy_prefix=generation == 1))
    model = chuan.load(tmp_path / "m", dtype="float32", device="cpu")
    backend = ChuanBackend(model)
    messages = [
        {"role": "system", "content": "中国"},
        *[{"role": role, "content": "你好"} for _ in range(200) for role in ("user", "assistant")],
        {"role": "user", "content": "答案："},
    ]
    (ids,) = backend.encode_chats([messages])
    hello = model.tokenizer.encode("你好")
    rounds = [195, *hello, 196, *hello] * 200
    assert ids == [*model.tokenizer.encode("中国"), *rounds, 195, *model.tokenizer.encode("答案："), 196]
    assert len(ids) > backend.context_length
    if generation == 2:
        assert find_chat_letters(backend) == [model.tokenizer.encode(letter)[0] for letter in "ABCD"]
    else:  # there each text has a blank in front, and the tiny vocabulary has no letter with one
        with pytest.raises(ChuanError, match="no token for each of A, B, C, D"):
            find_chat_letters(backend)


def test_models_without_a_chat_format_are_refused(tmp_path: Path):
    write_baichuan_folder(tmp_path / "m", 2, model_file=train_tiny_sentencepiece(), role_ids=None)
    write_many(tmp_path / "data", "mmlu", ["anatomy"], 2)
    plan = build_plan("mmlu", "baichuan", None, 5, None, "anatomy", tmp_path / "data", "chat")
    backend = ChuanBackend(chuan.load(tmp_path / "m", dtype="float32", device="cpu"))
    assert isinstance(backend, ChatLetterBackend)
    with pytest.raises(ChuanError, match="base model without a chat format; ask it by --mode base"):
        run_plan(plan, load_plan(plan), backend, tmp_path / "run")
    with pytest.raises(ChuanError, match="cannot be read off conversations with counting"):
        run_plan(plan, load_plan(plan), CountingBackend(), tmp_path / "other")
    with pytest.raises(ChuanError, match="--mode talk is not known; give base or chat"):
        build_plan("mmlu", "baichuan", None, 5, None, "anatomy", tmp_path / "data", "talk")


def test_replies_are_those_of_one_request_at_a_time(chatml):
    _, _, model = chatml
    texts = [f"snow is {'very ' * n}" for n in range(9)]
    chats = [[{"role": "user", "content": text}] for text in texts]
    options = GenerationOptions(max_new_tokens=12, stop=("zz",))
    replies = dict(ChuanBackend(model).generate([*texts, *chats], options))
    greedy = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 12, "stop": ("zz",)}
    assert [replies[n] for n in range(9)] == [model.generate(text, **greedy) for text in texts]
    assert [replies[n] for n in range(9, 18)] == [model.chat(chat, **greedy) for chat in chats]
    # As many tokens as fit, and where none does one line.
    long = [[{"role": "user", "content": "a " * 500}], [{"role": "user", "content": "a " * 2000}]]
    (reply,) = ChuanBackend(model).generate(long[:1], GenerationOptions(max_new_tokens=1000))
    assert reply[0] == 0
    with pytest.raises(ChuanError, match="tokens too long"):
        list(ChuanBackend(model).generate(long, options))


def test_the_digest_of_a_model_knows_its_files_and_not_their_place(tmp_path: Path):
    for name in ("a", "b"):
        write_llama_folder(tmp_path / name)
    (tmp_path / "b" / "README.md").write_text("hello")
    first = digest_weights(tmp_path / "a")
    assert digest_weights(tmp_path / "b") == first
    path = tmp_path / "b" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"rope_theta": 500000.0}))
    assert digest_weights(tmp_path / "b") != first
    write_llama_folder(tmp_path / "c", seed=1)
    assert digest_weights(tmp_path / "c") != first
    file = tmp_path / "a" / "model.safetensors"
    alone = digest_weights(file)
    assert alone != first
    assert digest_weights(file.rename(tmp_path / "other.safetensors")) == alone
