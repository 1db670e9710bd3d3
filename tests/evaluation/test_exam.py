"""GAOKAO-Bench as its authors ask it: prompts to the byte, what is read off replies, and points."""

import json
import math
from pathlib import Path

import pytest

from chuan.errors import ChuanError
from chuan.evaluation.accuracy import measure_part
from chuan.evaluation.backends.backend import ModelFacts, Reply
from chuan.evaluation.compare import compare_runs
from chuan.evaluation.evaluate import build_plan, load_plan, run_plan
from chuan.evaluation.exam import extract_answers, grade_reply, render_system
from chuan.evaluation.prompts import render_chat
from chuan.evaluation.protocols import find_protocol
from chuan.evaluation.report import write_report
from chuan.tasks.benchmarks import find_benchmark
from chuan.tasks.question import Question
from tests.evaluation.counting import CountingBackend
from tests.evaluation.tiny_data import write_gaokao

PREFIXES = Path(__file__).parents[3] / "shared/evaluation/gaokao/Bench/Obj_Prompt.json"
HISTORY = (
    "请你做一道历史选择题\n"
    "请你一步一步思考并将思考过程写在【解析】和<eoe>之间。你将从A，B，C，D中选出正确的答案，并写在【答案】和<eoa>之间。\n"
    "例如：【答案】: A <eoa>\n"
    "完整的题目回答的格式如下：\n"
    "【解析】 ... <eoe>\n"
    "【答案】 ... <eoa>\n"
    "请你严格按照上述格式作答。\n"
    "题目如下："
)


class Examinee:
    """Replies by question; `longest` characters of a conversation are what it can hold."""

    def __init__(self, replies, name="examinee"):
        self.replies, self.facts, self.options = replies, ModelFacts(name, "test"), None

    def generate(self, prompts, options):
        raise AssertionError

    def ask(self, prompts, options):
        self.options = options
        for number, prompt in reversed(list(enumerate(prompts))):
            yield number, Reply(self.replies[prompt[-1]["content"].strip()], 3, 2)


class LocalExaminee(CountingBackend):
    def encode_chats(self, chats):
        return [[ord(letter) for message in chat for letter in message["content"]] for chat in chats]

    def generate(self, prompts, options):
        for number, _ in enumerate(prompts):
            yield number, "【答案】 A <eoa>"


def plan_exam(data: Path, subjects: str):
    return build_plan("gaokao", "official", None, 5, None, subjects, data)


def ask(kind: str, *answers: str, points: float = 6.0) -> Question:
    return Question("gaokao", "s", "test", "0", "q", answers=answers, kind=kind, points=points)


def test_the_prompt_to_the_byte(tmp_path: Path):
    write_gaokao(tmp_path, "2010-2022_History_MCQs", [("\n1．（5分）雪是\nA．红 B．白 C．黑 D．绿\n\n", "B")])
    plan = plan_exam(tmp_path, "2010-2022_History_MCQs")
    assert (plan.shots, plan.mode, plan.seed) == (0, "chat", None)
    (asked,) = load_plan(plan)
    assert render_chat(find_protocol("gaokao", "official"), asked, asked.demonstrations) == [
        {"role": "system", "content": HISTORY},
        {"role": "user", "content": "1．（5分）雪是\nA．红 B．白 C．黑 D．绿\n"},
    ]


@pytest.mark.skipif(not PREFIXES.is_file(), reason="the benchmarks are not beside this checkout")
def test_all_fourteen_prefixes_are_the_authors():
    published = json.loads(PREFIXES.read_text(encoding="utf-8"))["examples"]
    subjects = find_benchmark("gaokao").subjects
    assert {row["keyword"]: row["prefix_prompt"] for row in published} == {
        name: render_system(subject) for name, subject in subjects.items()
    }


@pytest.mark.parametrize(
    ("kind", "reply", "count", "answers"),
    [
        ("single_choice", "【解析】 A错，B错 <eoe>\n【答案】: C <eoa>", 1, ["C"]),
        ("single_choice", "不知道", 1, []),
        ("multiple_choice", "【解析】 A 对 <eoe>【答案】 B D <eoa>", 1, ["BD"]),
        ("multiple_choice", "【答案】 AB <eoa>", 1, ["AB"]),  # at the very beginning: the last ten characters
        ("multiple_choice", "应选 A、C。", 1, ["AC"]),
        ("multiple_choice", "A and then many other words", 1, []),
        ("several_questions", "D?（1）【答案】： A <eoa>\n（2）【答案】: B <eoa>", 2, ["A", "B"]),
        ("several_questions", "D?（1）【答案】 A <eoa>\n（2）B <eoa>", 2, ["D", "A"]),
        ("several_questions", "1. C 2. D 3. A", 2, ["C", "D"]),
        ("five_of_seven", "【答案】 A G C D E F <eoa>", 5, ["A", "G", "C", "D", "E"]),
    ],
)
def test_what_is_read_off_a_reply(kind: str, reply: str, count: int, answers: list[str]):
    assert extract_answers(kind, reply, count) == answers


def test_points():
    for reply, points in [("BD", 6), ("B", 3), ("BC", 0), ("BCD", 0), ("", 0)]:
        row = grade_reply(ask("multiple_choice", "BD"), f"x【答案】{reply}")
        assert (row["points"], row["possible"], row["correct"]) == (points, 6, points == 6)
    row = grade_reply(ask("several_questions", "A", "B", "C", points=2), "A B D")
    assert (row["gold"], row["predicted"], row["correct"]) == ("A B C", "A B D", False)
    assert (row["points"], row["possible"]) == (4, 6)
    row = grade_reply(ask("several_questions", "A", "B", "C", points=2), "A B")  # one missing: all wrong
    assert (row["predicted"], row["points"], row["possible"]) == (None, 0, 6)


def test_an_average_of_points():
    rows = [{"correct": None, "points": points, "possible": 4.0} for points in (4.0, 4.0, 0.0, 4.0, 0.0)]
    rows = [{**row, "correct": row["points"] == 4} for row in rows]
    part = measure_part([rows[:2], rows[2:]], "points")
    assert part["value"] == pytest.approx(0.6)
    assert part["standard_error"] == pytest.approx(math.sqrt(0.6 * 0.4 / 4))  # of equal weights, that of a share
    part = measure_part([[*rows, {"correct": False, "points": 3.0, "possible": 10.0}]], "points")
    assert part["value"] == pytest.approx(15 / 30)
    assert measure_part([rows[:1]], "points")["standard_error"] is None


def test_a_run_from_replies_to_points(tmp_path: Path):
    names = "2010-2022_History_MCQs,2010-2022_Physics_MCQs"
    write_gaokao(tmp_path, "2010-2022_History_MCQs", [("h0", "B"), ("h1", "C"), ("h2", "A")])
    write_gaokao(tmp_path, "2010-2022_Physics_MCQs", [("p0", "AB"), ("p1", "D")])
    plan = plan_exam(tmp_path, names)
    replies = {"h0": "【答案】: B <eoa>", "h1": "A", "h2": "?", "p0": "x【答案】B", "p1": "x【答案】D"}
    backend = Examinee(replies)
    facts = run_plan(plan, load_plan(plan), backend, tmp_path / "a")
    assert backend.options.temperature == 0.3
    average = facts["accuracy"]["average"]
    assert average["kind"] == "points"
    assert average["value"] == pytest.approx((5 + 2.5 + 5) / 25)
    assert facts["accuracy"]["categories"]["multiple_choice"]["value"] == pytest.approx(7.5 / 10)
    assert (facts["unextracted"], facts["comparable"], facts["shots"]) == (1, False, 0)
    assert "protocol official" in facts["note"]
    write_report(tmp_path / "a")
    assert "a question weighs as many points as it has" in (tmp_path / "a/report.md").read_text(encoding="utf-8")
    better = {**replies, "p0": "x【答案】AB"}
    run_plan(plan, load_plan(plan), Examinee(better, "other"), tmp_path / "b")
    comparison = compare_runs(tmp_path / "a", tmp_path / "b")
    assert (comparison.only_a, comparison.only_b, comparison.kind) == (0, 1, "points")
    assert comparison.difference == pytest.approx(2.5 / 25)
    assert comparison.interval[0] == 0 < comparison.interval[1] <= 0.5


def test_a_model_on_this_machine_answers_what_fits_its_context(tmp_path: Path):
    write_gaokao(tmp_path, "2010-2022_History_MCQs", [("short", "A"), ("long " * 200, "A"), ("short too", "B")])
    plan = plan_exam(tmp_path, "2010-2022_History_MCQs")
    facts = run_plan(plan, load_plan(plan), LocalExaminee(context_length=400), tmp_path / "run")
    assert facts["accuracy"]["average"]["value"] == pytest.approx(1 / 3)
    assert (facts["too_long"], facts["unextracted"], facts["tokens"]["input"]) == (1, 0, 0)


def test_other_benchmarks_have_no_such_protocol():
    with pytest.raises(ChuanError, match=r"agieval has no protocol official; it has baichuan"):
        find_protocol("agieval", "official")
