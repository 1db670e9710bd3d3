"""Models through transformers: every architecture of the published tables that it has, against plain forward passes."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from chuan.errors import ChuanError
from chuan.evaluation.backends.backend import ChatLetterBackend, GenerationOptions, LetterBackend, find_chat_letters
from chuan.evaluation.backends.fingerprint import digest_weights
from chuan.evaluation.backends.open import open_backend
from chuan.evaluation.backends.transformers_backend import TransformersBackend
from chuan.evaluation.evaluate import build_plan, load_plan, run_plan
from chuan.evaluation.runs import read_questions
from tests.evaluation.tiny_data import write_many
from tests.support.folders import write_baichuan_folder, write_booby_traps, write_llama_folder
from tests.support.tiny_tokenizer import train_tiny_sentencepiece

WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
# The models of the tables behind each: LLaMA, Ziya, Open-LLaMA; Falcon; MPT; BLOOM, BLOOMZ, TigerBot; and what MOSS
# was made from (CodeGen, which is GPT-J with its weights in another order).
ARCHITECTURES = {
    "llama": {**WIDE, "intermediate_size": 64, "max_position_embeddings": 512},
    "falcon": {**WIDE, "max_position_embeddings": 512},
    "falcon-alibi": {**WIDE, "model_type": "falcon", "alibi": True, "new_decoder_architecture": True},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 512},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "seq_length": 512},
    "gptj": {**GPT, "rotary_dim": 4},
    "codegen": {**GPT, "rotary_dim": 4},
    "gpt_neox": {**WIDE, "intermediate_size": 64, "max_position_embeddings": 512},
}
# What the tables have beside them, by the model_type in its config.json: code of the folder, or none that is kept.
FOREIGN = {
    "chatglm": "ChatGLM-6B",
    "moss": "moss-moon-003-base and -sft",
    "aquila": "Aquila-7B",
    "open-llama": "Open-LLaMA-v2-pretrain",
}
ANSWER = "{% if add_generation_prompt %}assistant: {% endif %}"
PROMPTS = ["答案：", "Which letter? A. one B. two\nAnswer:", "x", "y", "A somewhat longer question, " * 5 + "Answer:"]


def save_tokenizer(folder: Path) -> None:
    """Bytes, a bos before texts, an eos."""
    pieces = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytes_alone = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, []))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=bytes_alone, bos_token="<s>", eos_token="</s>", add_bos_token=True, model_max_length=10**30
    )
    wrapped.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    wrapped.save_pretrained(folder)


def save_model(folder: Path, name: str, **options) -> Path:
    settings = {**ARCHITECTURES[name], **options}
    kind = settings.pop("model_type", name)
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=258, bos_token_id=0, eos_token_id=1, **settings)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)  # so that every prompt has other scores
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request, tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("llama"), "llama")


def test_scores_are_those_of_one_prompt_at_a_time(folder: Path):
    backend = open_backend(f"hf:{folder}", None, "cpu", "float32")
    assert isinstance(backend, LetterBackend)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    letters = backend.find_letters("spaced")
    prompts = backend.encode(PROMPTS, bos=True) * 20
    scores = dict(backend.score_letters(prompts, letters))
    assert sorted(scores) == list(range(len(prompts)))
    with torch.inference_mode():
        alone = torch.stack([model(torch.tensor([prompt])).logits[0, -1, letters] for prompt in prompts])
    torch.testing.assert_close(torch.tensor([scores[i] for i in range(len(prompts))]), alone, rtol=1e-4, atol=1e-4)
    assert len({tuple(row) for row in alone[: len(PROMPTS)].round(decimals=1).tolist()}) == len(PROMPTS)


def test_replies_are_greedy(folder: Path):
    backend = TransformersBackend(str(folder), "cpu", "float32")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    replies = dict(backend.generate(PROMPTS, GenerationOptions(12)))
    for number, ids in enumerate(backend.encode(PROMPTS, bos=True)):
        known = len(ids)
        with torch.inference_mode():
            while len(ids) < known + 12 and ids[-1] != 1:
                ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
        assert replies[number] == backend._tokenizer.decode(ids[known:], skip_special_tokens=True)


def test_facts_and_limits(folder: Path):
    backend = TransformersBackend(str(folder), "cpu", "bfloat16")
    facts = backend.facts
    assert (facts.model, facts.backend, facts.bits) == (f"hf:{folder}", "transformers", 16)
    assert (facts.dtype, facts.device) == ("bfloat16", "cpu")
    assert facts.parameters is not None
    assert facts.parameters > 10_000
    assert facts.weights_sha256 == digest_weights(folder)
    assert set(facts.versions) == {"torch", "transformers"}
    assert backend.context_length == (2048 if folder.name.startswith("falcon-alibi") else 512)


def test_a_model_that_says_no_length_has_none(tmp_path: Path):
    path = save_model(tmp_path, "bloom", seq_length=None)
    assert TransformersBackend(str(path), "cpu", "float32").context_length > 10**9


def test_a_bos_only_where_it_is_asked_for(llama: Path):
    backend = TransformersBackend(str(llama), "cpu", "float32")
    (plain,), (whole,) = backend.encode(["ab"], bos=False), backend.encode(["ab"], bos=True)
    assert whole == [0, *plain]
    assert len(plain) == 2


def test_chat_and_stops(llama: Path):
    backend = TransformersBackend(str(llama), "cpu", "float32")
    messages = [{"role": "user", "content": "甲"}]
    ((_, chatted),) = backend.generate([messages], GenerationOptions(8))
    encoded = backend.encode(["user: 甲\nassistant:"], bos=False)[0]
    backend._render = lambda prompt: encoded  # type: ignore[method-assign]
    assert list(backend.generate(["whatever"], GenerationOptions(8))) == [(0, chatted)]
    ((_, cut),) = backend.generate(["whatever"], GenerationOptions(8, stop=(chatted[3],)))
    assert cut == chatted[: chatted.index(chatted[3])]


def test_letters_of_an_answer(llama: Path):
    backend = TransformersBackend(str(llama), "cpu", "float32")
    assert isinstance(backend, ChatLetterBackend)
    backend._tokenizer.chat_template = backend._tokenizer.chat_template.replace("assistant:", ANSWER)
    (prompt,) = backend.encode_chats([[{"role": "user", "content": "甲"}]])
    assert prompt == backend.encode(["user: 甲\nassistant: "], bos=False)[0]
    assert find_chat_letters(backend) == backend.find_letters("bare")
    backend._tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ messages | length }}"
    with pytest.raises(ChuanError, match="does not say where an answer begins"):
        find_chat_letters(backend)
    backend._tokenizer.chat_template = "{{ raise_exception('no system\n turn') }}"
    with pytest.raises(ChuanError, match="refuses: no system"):
        backend.encode_chats([[{"role": "user", "content": "甲"}]])


def test_a_seed_repeats_what_is_drawn(llama: Path):
    backend = TransformersBackend(str(llama), "cpu", "float32")
    drawn = [list(backend.generate(["x"], GenerationOptions(16, temperature=3.0, seed=seed))) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_cannot_be_asked_is_one_line(llama: Path, tmp_path: Path):
    backend = TransformersBackend(str(llama), "cpu", "float32")
    with pytest.raises(ChuanError, match="leave no room"):
        list(backend.generate(["x" * 600], GenerationOptions(1)))
    backend._tokenizer.chat_template = None
    with pytest.raises(ChuanError, match="without a chat template"):
        list(backend.generate([[{"role": "user", "content": "x"}]], GenerationOptions(1)))
    with pytest.raises(ChuanError, match="leave out --bits"):
        open_backend(f"hf:{llama}", 8, "cpu", "float32")
    with pytest.raises(ChuanError, match="cannot open"):
        TransformersBackend(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("mode", ["base", "chat"])
def test_a_run_is_that_of_our_engine(mode, tmp_path: Path):
    write_many(tmp_path / "data", "mmlu", ["anatomy", "virology"], 6)
    write_llama_folder(tmp_path / "model", max_position_embeddings=1024)
    rows = {}
    for prefix in ("hf:", ""):
        plan = build_plan("mmlu", "baichuan", "test", 3, None, "anatomy,virology", tmp_path / "data", mode)
        backend = open_backend(f"{prefix}{tmp_path / 'model'}", None, "cpu", "float32")
        facts = run_plan(plan, load_plan(plan), backend, tmp_path / f"run{prefix.strip(':')}")
        rows[prefix] = read_questions(tmp_path / f"run{prefix.strip(':')}")
        assert facts["backend"] == ("transformers" if prefix else "chuan")
    for theirs, ours in zip(rows["hf:"], rows[""], strict=True):
        assert theirs["prompt_sha256"] == ours["prompt_sha256"]
        assert theirs["scores"] == pytest.approx(ours["scores"], abs=1e-3)
        assert theirs["predicted"] == ours["predicted"]


def save_foreign(folder: Path, kind: str) -> Path:
    """A model whose code leaves a file behind when it runs, and is Llama's."""
    save_model(folder, "llama")
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "code.OwnConfig", "AutoModelForCausalLM": "code.OwnModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": kind, "auto_map": auto_map}))
    (folder / "code.py").write_text(
        "from pathlib import Path\nfrom transformers import LlamaConfig, LlamaForCausalLM\n"
        f"Path({str(folder)!r}, 'ran').touch()\n"
        f"class OwnConfig(LlamaConfig):\n    model_type = {kind!r}\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    return folder


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_code_runs_only_when_it_is_trusted(kind: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    assert kind not in CONFIG_MAPPING_NAMES
    path = save_foreign(tmp_path / kind, kind)
    with pytest.raises(ChuanError, match="give --trust-remote-code") as caught:
        open_backend(f"hf:{path}", None, "cpu", "float32")
    assert "\n" not in str(caught.value)
    assert not (path / "ran").exists()


def test_code_beside_an_architecture_that_is_known_is_left_alone(tmp_path: Path):
    path = save_foreign(tmp_path / "own", "llama")  # as folders of Falcon and MPT have it
    backend = open_backend(f"hf:{path}", None, "cpu", "float32")
    assert backend.find_letters("bare")
    assert not (path / "ran").exists()


def test_a_tokenizer_may_be_code_too(llama: Path, tmp_path: Path):
    path = shutil.copytree(llama, tmp_path / "own")
    settings = json.loads((path / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["code.Own", None]}}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    (path / "code.py").write_text(f"from pathlib import Path\nPath({str(path)!r}, 'ran').touch()\nclass Own: pass\n")
    with pytest.raises(ChuanError, match="give --trust-remote-code"):
        TransformersBackend(str(path), "cpu", "float32")
    assert not (path / "ran").exists()


def test_trusted_code_runs(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    path = save_foreign(tmp_path / "own", "aquila")
    backend = open_backend(f"hf:{path}", None, "cpu", "float32", trust_remote_code=True)
    assert (path / "ran").exists()
    plain = TransformersBackend(str(save_model(tmp_path / "llama", "llama")), "cpu", "float32")
    prompts, letters = backend.encode(PROMPTS, bos=True), backend.find_letters("bare")
    assert dict(backend.score_letters(prompts, letters)) == dict(plain.score_letters(prompts, letters))


@pytest.mark.parametrize("generation", [1, 2])
def test_baichuan_is_opened_by_our_own_classes(generation, tmp_path: Path):
    path = tmp_path / "baichuan"
    write_baichuan_folder(path, generation, model_file=train_tiny_sentencepiece())
    write_booby_traps(path, tmp_path / "ran")
    through, ours = (open_backend(name, None, "cpu", "float32") for name in (f"hf:{path}", str(path)))
    texts = ["the river 解释 A", "what is your name", "你好"]
    for bos in (True, False):
        assert through.encode(texts, bos) == ours.encode(texts, bos)
    prompts = ours.encode(texts, True)
    expected = dict(ours.score_letters(prompts, [5, 6, 7, 8]))
    for number, scores in through.score_letters(prompts, [5, 6, 7, 8]):
        assert scores == pytest.approx(expected[number], abs=1e-4)
    assert not (tmp_path / "ran").exists()


class Touch:
    """An object whose unpickling writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickles_are_read_as_weights_alone(llama: Path, tmp_path: Path):
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    (tmp_path / "bin").mkdir()
    model.config.save_pretrained(tmp_path / "bin")
    save_tokenizer(tmp_path / "bin")
    weights = tmp_path / "bin" / "pytorch_model.bin"
    torch.save(model.state_dict(), weights)
    plain, pickled = (TransformersBackend(str(path), "cpu", "float32") for path in (llama, tmp_path / "bin"))
    prompts, letters = plain.encode(PROMPTS, bos=True), plain.find_letters("bare")
    assert dict(pickled.score_letters(prompts, letters)) == dict(plain.score_letters(prompts, letters))
    torch.save({**model.state_dict(), "trap": Touch(tmp_path / "ran")}, weights)
    with pytest.raises(ChuanError, match="cannot open"):
        TransformersBackend(str(tmp_path / "bin"), "cpu", "float32")
    weights.write_bytes(pickle.dumps(Touch(tmp_path / "ran"), protocol=2))
    with pytest.raises(ChuanError, match="cannot open"):
        TransformersBackend(str(tmp_path / "bin"), "cpu", "float32")
    assert not (tmp_path / "ran").exists()
