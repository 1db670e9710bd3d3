"""The protocol `harness`, against lm-evaluation-harness itself on the same files: question by question."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

import chuan
from chuan.evaluation.backends.chuan import ChuanBackend
from chuan.evaluation.evaluate import build_plan, load_plan, run_plan
from chuan.evaluation.runs import read_questions
from tests.evaluation.tiny_data import write_many
from tests.support.folders import build_llama
from tests.support.harness_tasks import run_harness

DATA = Path(__file__).parents[3] / "shared" / "evaluation"
REAL = {
    "mmlu": "abstract_algebra business_ethics college_computer_science college_mathematics computer_security "
    "global_facts high_school_computer_science medical_genetics us_foreign_policy world_religions",
    "ceval": "accountant advanced_mathematics art_studies computer_network high_school_chinese law logic marxism "
    "physician sports_science",
}


def save_model(folder: Path, context: int) -> Path:
    """A tiny Llama whose tokenizer knows bytes and the four letters behind a blank."""
    pieces = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĠA", "ĠB", "ĠC", "ĠD"]
    backend = tokenizers.Tokenizer(
        models.BPE({piece: n for n, piece in enumerate(pieces)}, [("Ġ", letter) for letter in "ABCD"])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    build_llama(len(pieces), max_position_embeddings=context).save_pretrained(folder)
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def run_ours(folder: Path, data: Path, benchmark: str, subjects: list[str], model: Path) -> dict[str, Any]:
    split = "test" if benchmark == "mmlu" else "val"
    plan = build_plan(benchmark, "harness", split, 5, None, ",".join(subjects), data)
    return run_plan(plan, load_plan(plan), ChuanBackend(chuan.load(model, device="cpu", dtype="float32")), folder)


def compare(run: Path, theirs: dict[str, Any]) -> int:
    """A run of ours against the harness's answers, question by question; how many were compared."""
    rows, compared = read_questions(run), 0
    for subject, answers in theirs.items():
        own = [row for row in rows if row["subject"] == subject][: len(answers)]
        assert [row["gold"] for row in own] == ["ABCD"[gold] for gold, _ in answers]
        for row, (_, scores) in zip(own, answers, strict=True):
            assert row["predicted"] == "ABCD"[scores.index(max(scores))], (row, scores)
            gaps = [score - row["scores"]["A"] for score in row["scores"].values()]
            assert gaps == pytest.approx([score - scores[0] for score in scores], abs=2e-3)
            compared += 1
    return compared


@pytest.mark.parametrize("context", [2048, 400])  # where all fits, and where the beginning is cut off
@pytest.mark.parametrize(("benchmark", "subjects"), [("mmlu", ["anatomy", "virology"]), ("ceval", ["law", "logic"])])
@pytest.mark.parametrize("through", ["hf", "chuan"])
def test_a_tiny_model_agrees(benchmark, subjects, context, through, tmp_path: Path):
    write_many(tmp_path, benchmark, subjects, 12)
    model = save_model(tmp_path / "model", context)
    theirs = run_harness(tmp_path, tmp_path, benchmark, subjects, through, **given(model))
    facts = run_ours(tmp_path / "run", tmp_path, benchmark, subjects, model)
    assert compare(tmp_path / "run", theirs) == 24
    assert (facts["cut_prompts"] > 0) == (context == 400)


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the benchmarks' files are not here")
@pytest.mark.parametrize("benchmark", REAL)
def test_smollm2_agrees_on_ten_subjects(benchmark, tmp_path: Path, smollm2_path: Path):
    """Every question through our adapter, the first of each subject through transformers too."""
    subjects = REAL[benchmark].split()
    model = chuan.load(smollm2_path, device="cpu", dtype="float32").save(tmp_path / "model")
    facts = run_ours(tmp_path / "run", DATA, benchmark, subjects, model)
    theirs = run_harness(tmp_path, DATA, benchmark, subjects, "chuan", **given(model))
    assert compare(tmp_path / "run", theirs) == facts["accuracy"]["average"]["questions"]
    first = run_harness(tmp_path, DATA, benchmark, subjects, "hf", limit=10, **given(model))
    assert compare(tmp_path / "run", first) == 100


def given(model: Path) -> dict[str, str]:
    return {"pretrained": str(model), "device": "cpu", "dtype": "float32"}
