"""The engine's answers, against one question at a time through transformers, in float32."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import chuan
from chuan.evaluation.backends.chuan import ChuanBackend
from chuan.evaluation.evaluate import build_plan, load_plan, run_plan
from chuan.evaluation.runs import read_questions
from chuan.tasks.files import read_csv
from tests.evaluation.oracle import Answer, ask_one_by_one
from tests.evaluation.tiny_data import write_csv, write_many
from tests.support.folders import write_llama_folder

DATA = Path(__file__).parents[3] / "shared" / "evaluation"
MMLU = (
    "abstract_algebra,anatomy,business_ethics,college_computer_science,econometrics,global_facts,"
    "high_school_us_history,machine_learning,moral_scenarios,professional_law"
)
CEVAL = (
    "accountant,advanced_mathematics,art_studies,college_programming,computer_network,high_school_chinese,law,logic,"
    "marxism,physician"
)


def compare(rows: list[dict[str, Any]], answers: list[Answer]) -> tuple[float, list[str]]:
    """The largest difference of a score, and the questions whose two best letters are no farther apart.

    All others must have the letter that the loop gives them.
    """
    assert len(rows) == len(answers)
    assert [row["gold"] for row in rows] == [answer.gold for answer in answers]
    assert [row["dropped_demonstrations"] for row in rows] == [answer.dropped for answer in answers]
    error = max(
        abs(ours - theirs)
        for row, answer in zip(rows, answers, strict=True)
        for ours, theirs in zip(row["scores"].values(), answer.scores, strict=True)
    )
    near = []
    for row, answer in zip(rows, answers, strict=True):
        if answer.margin <= 2 * error:
            near.append(f"{row['subject']} {row['id']}: {row['predicted']}, {answer.predicted}, {answer.margin:.2g}")
        else:
            assert row["predicted"] == answer.predicted, (row, answer)
    return error, near


@pytest.mark.parametrize(
    ("benchmark", "protocol", "subjects", "context"),
    [
        ("mmlu", "baichuan", "anatomy,virology,world_religions", 1024),
        ("mmlu", "baichuan", "anatomy,virology", 400),  # where not all five demonstrations fit
        ("mmlu", "official", "anatomy,virology", 1024),
        ("ceval", "baichuan", "law,logic,physician", 1024),
        ("ceval", "official", "law,logic", 1024),
    ],
)
def test_a_tiny_model_answers_as_one_question_at_a_time(tmp_path: Path, benchmark, protocol, subjects, context):
    names = subjects.split(",")
    write_many(tmp_path / "data", benchmark, names, 12)
    twin = write_llama_folder(tmp_path / "model", max_position_embeddings=context)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = chuan.load(tmp_path / "model", dtype="float32", device="cpu")
    split = "test" if benchmark == "mmlu" else "val"
    plan = build_plan(benchmark, protocol, split, 5, None, subjects, tmp_path / "data")
    facts = run_plan(plan, load_plan(plan), ChuanBackend(model), tmp_path / "run")
    answers = [
        answer
        for name in names
        for answer in ask_one_by_one(twin, tokenizer, tmp_path / "data", benchmark, protocol, name, split, 12)
    ]
    rows = read_questions(tmp_path / "run")
    error, near = compare(rows, answers)
    assert error < 1e-4
    assert near == []
    scores = torch.tensor([answer.scores for answer in answers])
    assert float(scores.std(dim=0).min()) > 100 * error  # the questions do make a difference
    assert facts["dropped_demonstrations"] == sum(answer.dropped for answer in answers)
    assert (facts["dropped_demonstrations"] > 0) == (context == 400)


@pytest.mark.slow
@pytest.mark.xdist_group("smollm2")
@pytest.mark.skipif(not DATA.is_dir(), reason="the benchmarks are not beside this checkout")
@pytest.mark.parametrize(("benchmark", "split", "subjects"), [("mmlu", "test", MMLU), ("ceval", "val", CEVAL)])
def test_smollm2_answers_as_one_question_at_a_time(tmp_path: Path, smollm2_path, benchmark, split, subjects):
    """The first six questions of each of ten real subjects."""
    model = chuan.load(smollm2_path, bits=16, dtype="float32", device="cpu")
    folder = model.save(tmp_path / "model")
    twin = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answers: list[Answer] = []
    for subject in subjects.split(","):
        write_first(tmp_path / "data", benchmark, split, subject, 6)
        answers += ask_one_by_one(twin, tokenizer, DATA, benchmark, "baichuan", subject, split, 6)
    plan = build_plan(benchmark, "baichuan", split, 5, None, subjects, tmp_path / "data")
    run_plan(plan, load_plan(plan), ChuanBackend(model), tmp_path / "run")
    rows = read_questions(tmp_path / "run")
    error, near = compare(rows, answers)
    print(f"{benchmark}: {len(rows)} questions, error {error:.2g}, nearer than twice that: {near}")
    assert error < 1e-3
    assert len(near) <= 1
    assert len({row["predicted"] for row in rows}) > 1


def write_first(data: Path, benchmark: str, split: str, subject: str, count: int) -> None:
    """The demonstrations of a real subject, and its first questions, in a folder of their own."""
    place = "mmlu/data" if benchmark == "mmlu" else "ceval"
    for part in ("dev", split):
        rows = read_csv(DATA / place / part / f"{subject}_{part}.csv")
        kept = len(rows) if part == "dev" else count + (benchmark == "ceval")  # which has a header
        write_csv(data / place / part / f"{subject}_{part}.csv", rows[:kept])
