"""Questions that are missing, damaged, doubled, without an answer or too long: reported, never guessed."""

from pathlib import Path

import pytest

from chuan.errors import ChuanError
from chuan.evaluation.evaluate import build_plan, load_plan, run_plan
from chuan.evaluation.runs import read_questions
from tests.evaluation.counting import CountingBackend
from tests.evaluation.tiny_data import build_row, write_agieval, write_ceval, write_csv, write_gaokao, write_mmlu

ROWS = [build_row("anatomy", n) for n in range(9)]


def run(data: Path, backend: CountingBackend, benchmark: str = "mmlu", subjects: str | None = "anatomy", **plan):
    values = {"protocol": "baichuan", "split": None, "shots": 5, "seed": None} | plan
    built = build_plan(benchmark, values["protocol"], values["split"], values["shots"], values["seed"], subjects, data)
    return run_plan(built, load_plan(built), backend, data / "run")


def test_a_cell_that_says_none_is_an_option(tmp_path: Path):
    write_mmlu(tmp_path, "anatomy", dev=ROWS[:5], test=[["Which?", "None", "nan", "", "NULL", "A"]])
    backend = CountingBackend()
    facts = run(tmp_path, backend)
    (asked,) = backend.asked
    assert "".join(map(chr, asked)).endswith("Which?\nA. None\nB. nan\nC. \nD. NULL\nAnswer:")
    assert facts["repeated_options"] == 0


def test_options_that_repeat_are_counted(tmp_path: Path):
    write_mmlu(tmp_path, "anatomy", dev=ROWS[:5], test=[*ROWS[5:], ["Which?", "1", "2", "1", "3", "A"]])
    facts = run(tmp_path, CountingBackend())
    assert facts["repeated_options"] == 1
    assert [row["id"] for row in read_questions(tmp_path / "run") if row.get("repeated_options")] == ["4"]
    assert facts["accuracy"]["average"]["questions"] == 5


def test_missing_subjects_are_named(tmp_path: Path):
    write_mmlu(tmp_path, "anatomy", dev=ROWS[:5], test=ROWS[5:])
    with pytest.raises(
        ChuanError, match=r"abstract_algebra_test\.csv cannot be read.*leave abstract_algebra out by --sub"
    ):
        run(tmp_path, CountingBackend(), subjects=None)
    assert not (tmp_path / "run").exists()
    facts = run(tmp_path, CountingBackend())
    assert facts["note"] == "56 subjects were not asked"
    assert not facts["comparable"]


def test_missing_demonstrations_are_named(tmp_path: Path):
    write_mmlu(tmp_path, "anatomy", test=ROWS[5:])
    with pytest.raises(ChuanError, match=r"anatomy_dev\.csv cannot be read"):
        run(tmp_path, CountingBackend())
    assert run(tmp_path, CountingBackend(), shots=0)["note"] == "0 shots, the published table has 5"


def test_labels_that_are_absent(tmp_path: Path):
    rows = [build_row("law", n) for n in range(9)]
    unlabelled = [[*row[:5], "" if n == 1 else row[5]] for n, row in enumerate(rows[5:])]
    write_ceval(tmp_path, "law", dev=rows[:5], val=unlabelled)
    facts = run(tmp_path, CountingBackend(), "ceval", "law", split="val")
    assert facts["unlabelled"] == 1
    assert facts["accuracy"]["average"]["value"] is None
    assert [row["correct"] for row in read_questions(tmp_path / "run")].count(None) == 1
    assert not (tmp_path / "run/submission.json").exists()


def test_a_demonstration_without_an_answer_is_refused(tmp_path: Path):
    rows = [build_row("law", n) for n in range(9)]
    write_ceval(tmp_path, "law", dev=[*rows[:4], [*rows[4][:5], ""]], val=rows[5:])
    with pytest.raises(ChuanError, match="demonstration 4 of ceval's law has no answer"):
        run(tmp_path, CountingBackend(), "ceval", "law", split="val")


def test_a_question_without_an_answer_is_not_drawn(tmp_path: Path):
    name = "2010-2022_Math_I_MCQs"
    write_gaokao(tmp_path, name, [(f"q{n}", "" if n == 3 else "A") for n in range(8)])
    facts = run(tmp_path, CountingBackend(), "gaokao", name, shots=2)
    items = facts["items"][name]
    assert sorted([*items["demonstrations"], *items["asked"]]) == ["0", "1", "2", "4", "5", "6", "7"]
    assert facts["unlabelled"] == 0
    assert facts["seed"] == 0
    assert facts["note"].endswith("both are ours")


def test_an_id_that_is_there_twice_is_refused(tmp_path: Path):
    rows = [build_row("law", n) for n in range(9)]
    write_ceval(tmp_path, "law", dev=rows[:5], val=rows[5:])
    path = tmp_path / "ceval/val/law_val.csv"
    path.write_bytes(path.read_bytes().replace(b"\r\n2,", b"\r\n1,"))
    with pytest.raises(ChuanError, match="ceval has two questions 1 in law"):
        run(tmp_path, CountingBackend(), "ceval", "law", split="val")


def test_damaged_rows_are_one_line(tmp_path: Path):
    write_mmlu(tmp_path, "anatomy", dev=ROWS[:5], test=[*ROWS[5:], ROWS[0][:5]])
    with pytest.raises(ChuanError, match=r"anatomy_test\.csv, row 5 is damaged"):
        run(tmp_path, CountingBackend())
    write_csv(tmp_path / "mmlu/data/test/anatomy_test.csv", [[*ROWS[5][:5], "E"]])
    with pytest.raises(ChuanError, match=r"row 1 is damaged"):
        run(tmp_path, CountingBackend())


def test_what_does_not_fit_is_counted(tmp_path: Path):
    write_mmlu(tmp_path, "anatomy", dev=ROWS[:5], test=[*ROWS[5:], ["long " * 300, "1", "2", "3", "4", "A"]])
    facts = run(tmp_path, CountingBackend(context_length=500))
    rows = read_questions(tmp_path / "run")
    assert facts["too_long"] == 1
    last = rows[-1]
    assert (last["too_long"], last["predicted"], last["correct"], last["scores"]) == (True, None, False, None)
    assert last["dropped_demonstrations"] == 5
    assert facts["dropped_demonstrations"] == sum(row["dropped_demonstrations"] for row in rows) > 5
    assert facts["unextracted"] == 0
    assert facts["accuracy"]["average"]["questions"] == 5


def test_what_the_harness_cuts_is_counted(tmp_path: Path):
    write_mmlu(tmp_path, "anatomy", dev=ROWS[:5], test=ROWS[5:])
    backend = CountingBackend(context_length=500)
    facts = run(tmp_path, backend, protocol="harness")
    assert facts["cut_prompts"] == 4
    assert {len(prompt) for prompt in backend.asked} == {500}
    assert facts["dropped_demonstrations"] == 0
    assert "protocol harness" in facts["note"]


def test_items_with_another_number_of_answers_are_left_out_of_agieval(tmp_path: Path):
    rows = [[f"q{n}", "a", "b", "c", "d", "AD" if n == 3 else "C"] for n in range(8)]
    write_agieval(tmp_path, "gaokao-mathqa", rows)
    facts = run(tmp_path, CountingBackend(), "agieval", "gaokao-mathqa", seed=4)
    assert len(facts["items"]["gaokao-mathqa"]["asked"]) == 2
    assert "3" not in str(facts["items"]["gaokao-mathqa"])
    assert facts["seed"] == 4


@pytest.mark.parametrize(
    ("plan", "what"),
    [
        ({"shots": -1}, "--shots -1 is not possible"),
        ({"split": "dev"}, "what demonstrations come from"),
        ({"split": "train"}, "mmlu has no split train; it has dev, val, test"),
        ({"subjects": " ,"}, "--subjects names none"),
        ({"subjects": "anatomie"}, "mmlu has no subject anatomie"),
        ({"protocol": "ours"}, "mmlu has no protocol ours; it has baichuan, official, harness"),
        ({"benchmark": "hellaswag"}, "no benchmark is called hellaswag"),
        ({"shots": 6}, "ask for --shots 5"),
    ],
)
def test_wishes_that_cannot_be_met_are_one_line(tmp_path: Path, plan, what):
    write_mmlu(tmp_path, "anatomy", dev=ROWS[:5], test=ROWS[5:])
    with pytest.raises(ChuanError, match=what):
        run(tmp_path, CountingBackend(), **plan)
