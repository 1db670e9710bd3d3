"""Our model inside lm-evaluation-harness, against the harness's own model for transformers."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from chuan.errors import ChuanError
from chuan.integrations.lm_eval import model as adapter
from chuan.integrations.lm_eval.model import ChuanLM
from tests.evaluation.tiny_data import write_many
from tests.support.folders import write_llama_folder
from tests.support.harness_tasks import run_harness, write_task
from tests.support.texts import generate_texts

SUBJECTS = {"mmlu": ["anatomy", "virology"], "ceval": ["law", "logic"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    write_llama_folder(path, max_position_embeddings=512)
    return path


@pytest.fixture(scope="module")
def both(folder: Path) -> tuple[ChuanLM, HFLM]:
    theirs = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=1)
    return ChuanLM(str(folder), device="cpu", dtype="float32"), theirs


def build(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, given, number) for number, given in enumerate(arguments)]


@pytest.mark.parametrize("benchmark", SUBJECTS)
def test_multiple_choice_agrees_question_by_question(benchmark, folder: Path, tmp_path: Path):
    write_many(tmp_path, benchmark, SUBJECTS[benchmark], 12)
    given = (tmp_path, tmp_path, benchmark, SUBJECTS[benchmark])
    ours = run_harness(*given, "chuan", pretrained=str(folder), device="cpu", dtype="float32")
    theirs = run_harness(*given, "hf", pretrained=str(folder), device="cpu", dtype="float32")
    for subject in SUBJECTS[benchmark]:
        assert [gold for gold, _ in ours[subject]] == [gold for gold, _ in theirs[subject]]
        scores, expected = (torch.tensor([row for _, row in found[subject]]) for found in (ours, theirs))
        torch.testing.assert_close(scores, expected, atol=1e-3, rtol=0)
        assert scores.argmax(1).tolist() == expected.argmax(1).tolist()
        assert len(ours[subject]) == 12


def test_continuations_of_any_length(both, monkeypatch):
    monkeypatch.setattr(adapter, "_PART", 16)
    monkeypatch.setattr(adapter, "_ROWS", 64)
    texts = list(generate_texts(12, 3))
    pairs = [(text[: len(text) // 3], text[len(text) // 3 :]) for text in texts]
    pairs += [("", texts[0]), ("a ", "b"), ("long " * 600, " end"), *[(texts[1], f" {letter}") for letter in "ABCD"]]
    ours, theirs = (model.loglikelihood(build("loglikelihood", *pairs)) for model in both)
    assert [nats for nats, _ in ours] == pytest.approx([nats for nats, _ in theirs], abs=2e-3)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    context = texts[2]
    (reply,) = both[1].generate_until(build("generate_until", (context, {"max_gen_toks": 3})))
    ((_, greedy),) = both[0].loglikelihood(build("loglikelihood", (context, reply)))
    assert greedy == both[1].loglikelihood(build("loglikelihood", (context, reply)))[0][1]


def test_whole_texts_in_rolling_windows(both):
    texts = [(text,) for text in [" ".join(generate_texts(40, 5)), "short", "河流"]]
    ours, theirs = (model.loglikelihood_rolling(build("loglikelihood_rolling", *texts)) for model in both)
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert len(both[0].tok_encode(texts[0][0])) > 600  # more than one window


def test_generation_stops_where_theirs_does(both):
    wishes = {"until": ["\n\n", "."], "max_gen_toks": 20, "do_sample": False, "temperature": 0.0}
    asked = [(text, wishes) for text in generate_texts(6, 7)] + [("long " * 600, {"max_gen_toks": 8})]
    ours, theirs = (model.generate_until(build("generate_until", *asked)) for model in both)
    assert ours == theirs
    stop = ours[0][2:4]
    ours, theirs = (
        model.generate_until(build("generate_until", (asked[0][0], {"until": stop, "max_gen_toks": 20})))
        for model in both
    )
    assert ours == theirs
    assert stop not in ours[0]


def test_what_it_cannot_do_is_one_line(both, folder: Path):
    with pytest.raises(ChuanError, match="asks for num_beams=4"):
        both[0].generate_until(build("generate_until", ("x", {"num_beams": 4})))
    with pytest.raises(ChuanError, match="max_length=9999 does not fit"):
        ChuanLM(str(folder), device="cpu", max_length=9999)


def test_import_chuan_is_enough(folder: Path, tmp_path: Path):
    write_many(tmp_path, "mmlu", ["anatomy"], 2)
    write_task(tmp_path, "local", tmp_path, "mmlu", "anatomy")
    code = (
        "import chuan, lm_eval\nfrom lm_eval.tasks import TaskManager\n"
        f"m = TaskManager(include_path={str(tmp_path)!r}, include_defaults=False)\n"
        f"args = 'pretrained={folder},device=cpu,dtype=float32'\n"
        "r = lm_eval.simple_evaluate('chuan', args, ['local'], num_fewshot=2, task_manager=m, bootstrap_iters=0)\n"
        "print('acc', r['results']['local']['acc,none'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert "acc " in done.stdout, done.stderr


def test_the_command_line(folder: Path, tmp_path: Path):
    write_many(tmp_path, "mmlu", ["anatomy"], 2)
    write_task(tmp_path, "local", tmp_path, "mmlu", "anatomy")
    command = [sys.executable, "-m", "chuan.integrations.lm_eval", "run", "--model", "chuan", "--model_args"]
    command += [f"pretrained={folder},dtype=float32", "--tasks", "local", "--include_path", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "|local|" in done.stdout.replace(" ", "")
    assert "acc" in done.stdout
