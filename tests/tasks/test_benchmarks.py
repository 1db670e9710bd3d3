"""The readers of benchmarks on tiny folders of the same formats, with their traps; and the real counts."""

import json
from collections import Counter
from pathlib import Path

import pytest

from chuan.errors import ChuanError
from chuan.tasks.agieval import split_marks
from chuan.tasks.benchmarks import BENCHMARKS, load_questions

DATA = Path(__file__).parents[3] / "shared" / "evaluation"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the benchmarks are not beside this checkout")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def test_subjects():
    ceval, mmlu = BENCHMARKS["ceval"].subjects, BENCHMARKS["mmlu"].subjects
    assert Counter(s.category for s in ceval.values()) == {
        "STEM": 20,
        "Social Science": 10,
        "Humanities": 11,
        "Other": 11,
    }
    assert Counter(s.level for s in ceval.values()) == {
        "middle_school": 7,
        "high_school": 8,
        "professional": 12,
        "college": 25,
    }
    hard = [s for s in ceval.values() if s.is_hard]
    assert len(hard) == 8
    assert {s.category for s in hard} == {"STEM"}
    assert ceval["law"].title == "法学"
    assert Counter(s.category for s in mmlu.values()) == {
        "STEM": 18,
        "humanities": 13,
        "social sciences": 12,
        "other": 14,
    }
    assert mmlu["abstract_algebra"].title == "abstract algebra"
    assert len(BENCHMARKS["agieval"].subjects) == 21
    assert len(BENCHMARKS["gaokao"].subjects) == 14


def test_mmlu_cells_stay_as_they_are(tmp_path: Path):
    write(
        tmp_path / "mmlu/data/test/anatomy_test.csv",
        'What is 2?, one,None,"a,b",NA,B\r\n"Two\r\nlines\nand ""quotes""",1,2,3,4,D\n"one\rCR",1.50,2,3,4,A\n',
    )
    first, second, third = load_questions("mmlu", tmp_path, ["anatomy"])
    assert first.choices == (" one", "None", "a,b", "NA")
    assert (first.answer, first.id, first.is_four_choice) == ("B", "0", True)
    assert second.question == 'Two\nlines\nand "quotes"'
    assert (third.question, third.choices[0]) == ("one\rCR", "1.50")
    # The benchmark's own folder serves as well.
    assert load_questions("mmlu", tmp_path / "mmlu", ["anatomy"]) == [first, second, third]


def test_ceval_splits(tmp_path: Path):
    columns = "id,question,A,B,C,D"
    write(tmp_path / "dev/law_dev.csv", f'{columns},answer,explanation\r\n0,问____,一,二,三,四,C,"1. 甲\r\n2. 乙"\r\n')
    write(tmp_path / "val/law_val.csv", f"\ufeff{columns},answer\r\n0,问,一,二,三,四,A\r\n")
    write(tmp_path / "test/law_test.csv", f'{columns}\r\n0,"上\r\n下",一,二,三,四\r\n1,问,一,二,三,四\r\n')
    (demonstration,) = load_questions("ceval", tmp_path, ["law"], "dev")
    assert (demonstration.answer, demonstration.explanation) == ("C", "1. 甲\n2. 乙")
    assert load_questions("ceval", tmp_path, ["law"], "val")[0].answer == "A"
    first, second = load_questions("ceval", tmp_path, ["law"])
    assert (first.question, first.answer, first.answers) == ("上\n下", None, ())
    assert (second.id, second.is_four_choice) == ("1", True)


def test_marks_of_options():
    assert split_marks(["(A)一", "（B） 二", "C．三", "  D. 四 "]) == ("一", "二", "三", "四")
    assert split_marks(["A first", "B? second", "C、third", "(D)"]) == ("first", "second", "third", "")
    # Two columns of print: the letters say the order.
    assert split_marks(["(A)1", "(C)3", "(B)2", "(D)4"]) == ("1", "2", "3", "4")
    # A letter twice: the order of the file.
    assert split_marks(["(A)1", "(C)2", "(C)3", "(D)4"]) == ("1", "2", "3", "4")
    # Texts that begin with a capital, or hold one, are no marks.
    assert split_marks(["City A.B was sold", "Bees", "C.C. Ltd"]) == ("City A.B was sold", "Bees", "C. Ltd")


def test_agieval(tmp_path: Path):
    options = ["(A)a", "(B)b", "(C)c", "(D)d"]
    items = [
        {"passage": None, "question": "zwei\x1dTeile\r\nq\u2028", "options": options, "label": "B", "answer": None},
        {"passage": "P", "question": "q", "options": options, "label": "A B D"},
        {"passage": "", "question": "q", "options": options, "label": ["C"]},
        {"passage": "", "question": "q", "options": options, "label": []},
        {"passage": "", "question": "q", "options": [*options, "(E)e"], "label": "E"},
        {"passage": None, "question": "free", "options": None, "label": None, "answer": "$\\frac{1}{2}$"},
    ]
    lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    write(tmp_path / "data/v1_1/sat-en.jsonl", lines)
    sample = {"passage": "P", "question": "q", "options": options, "label": "D", "answer": None, "other": None}
    quoted = str(sample).replace('"', '""')
    write(
        tmp_path / "data/few_shot_prompts.csv",
        f',math,sat-en\nsample 1,,"{quoted}"\nexplanation 1,,because\nsample 2,,\nexplanation 2,,\n',
    )
    one, several, listed, unknown, five, cloze = load_questions("agieval", tmp_path, ["sat-en"])
    assert (one.question, one.answer, one.choices) == ("zwei\x1dTeile\nq\u2028", "B", ("a", "b", "c", "d"))
    assert one.options == tuple(options)
    assert (several.answer, several.kind, several.is_four_choice, several.passage) == (
        "ABD",
        "multiple_choice",
        False,
        "P",
    )
    assert (listed.answer, listed.is_four_choice) == ("C", True)
    assert (unknown.answer, unknown.is_four_choice) == (None, False)
    assert (five.kind, five.is_four_choice) == ("single_choice", False)
    assert (cloze.kind, cloze.answer, cloze.choices) == ("cloze", "$\\frac{1}{2}$", ())
    (demonstration,) = load_questions("agieval", tmp_path, ["sat-en"], "dev")
    assert (demonstration.answer, demonstration.explanation, demonstration.passage) == ("D", "because", "P")
    (bare,) = load_questions("agieval", tmp_path, ["sat-en-without-passage"], "dev")
    assert (bare.passage, bare.question) == ("", "q")


def test_gaokao(tmp_path: Path):
    items = [
        {"question": "1．问\r\nA．一 B．二", "answer": ["A"], "analysis": "解", "index": 0, "score": 5},
        {"question": "文", "answer": ["A", "C"], "analysis": "", "index": 1, "score": 3},
    ]
    for name in ("2010-2022_Math_I_MCQs", "2010-2022_Chinese_Modern_Lit"):
        write(tmp_path / f"gaokao/Data/Objective_Questions/{name}.json", json.dumps({"example": items}))
    math = load_questions("gaokao", tmp_path, ["2010-2022_Math_I_MCQs"])
    assert (math[0].question, math[0].answer, math[0].points) == ("1．问\nA．一 B．二", "A", 5.0)
    assert math[0].is_four_choice
    text = load_questions("gaokao", tmp_path, ["2010-2022_Chinese_Modern_Lit"])[1]
    assert (text.answers, text.answer, text.is_four_choice) == (("A", "C"), None, False)


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("mmlu", "test/anatomy_test.csv", "q,a,b,c,A\n", "row 1 is damaged"),
        ("mmlu", "test/anatomy_test.csv", 'q,"a,b,c,d,A\n', "is not CSV"),
        ("mmlu", "test/anatomy_test.csv", "q,a,b,c,d,E\n", "row 1 is damaged"),
        ("ceval", "test/law_test.csv", "question,A,B,C,D\n", "has not the columns"),
        ("ceval", "test/law_test.csv", "", "has not the columns"),
        ("ceval", "test/law_test.csv", "id,question,A,B,C,D\n0,q,a,b,c\n", "row 2 is damaged"),
        ("agieval", "v1_1/math.jsonl", '{"question": "q"', "line 1 is not JSON"),
        ("agieval", "v1_1/math.jsonl", '{"question": "q"}\n', "line 1 is no item"),
        ("agieval", "v1_1/math.jsonl", "[]\n", "is no JSON object"),
        ("gaokao", "Data/Objective_Questions/2010-2022_Math_I_MCQs.json", "{}", "no list `example`"),
        ("gaokao", "Data/Objective_Questions/2010-2022_Math_I_MCQs.json", '{"example": [{}]}', "item 0 is no item"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, name: str, file: str, content: str, message: str):
    write(tmp_path / file, content)
    subject = {"mmlu": "anatomy", "ceval": "law", "agieval": "math", "gaokao": "2010-2022_Math_I_MCQs"}[name]
    with pytest.raises(ChuanError, match=message) as caught:
        load_questions(name, tmp_path, [subject])
    assert "\n" not in str(caught.value)


def test_not_utf8(tmp_path: Path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test/anatomy_test.csv").write_bytes("问".encode("gb18030") + b",a,b,c,d,A\n")
    with pytest.raises(ChuanError, match="is not UTF-8"):
        load_questions("mmlu", tmp_path, ["anatomy"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cevil", ".", None, "test"), "no benchmark is called cevil; there are ceval"),
        (("gaokao", ".", None, "dev"), "gaokao has no split dev"),
        (("mmlu", ".", ["alchemy"], "test"), "mmlu has no subject alchemy"),
        (("agieval", "nowhere", None, "test"), "nowhere holds no AGIEval"),
        (("mmlu", ".", ["anatomy"], "test"), "anatomy_test.csv cannot be read"),
    ],
)
def test_wrong_names_are_one_line(arguments: tuple, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ChuanError, match=message):
        load_questions(*arguments)


@needs_data
@pytest.mark.parametrize(
    ("name", "split", "count", "four_choice", "answers"),
    [
        ("ceval", "dev", 260, 260, 260),
        ("ceval", "val", 1346, 1346, 1346),
        ("ceval", "test", 12342, 12342, 0),
        ("mmlu", "dev", 285, 285, 285),
        ("mmlu", "val", 1531, 1531, 1531),
        ("mmlu", "test", 14042, 14042, 14042),
        ("agieval", "test", 7272, 4678 + 206, 7272),
        ("agieval-v1", "test", 8269, 4648 + 203, 8268),  # jec-qa-kd 211 has no label
        ("gaokao", "test", 1781, 1418, 2944),
    ],
)
def test_counts_of_the_real_data(name: str, split: str, count: int, four_choice: int, answers: int):
    questions = load_questions(name, DATA, split=split)
    assert len(questions) == count
    assert sum(question.is_four_choice for question in questions) == four_choice
    assert sum(len(question.answers) for question in questions) == answers
    assert len({(question.subject, question.id) for question in questions}) == count


@needs_data
def test_traps_of_the_real_data():
    mmlu = load_questions("mmlu", DATA)
    assert sum(choice == "None" for question in mmlu for choice in question.choices) == 10
    everything = [*mmlu, *load_questions("ceval", DATA), *load_questions("agieval", DATA)]
    assert not [question for question in everything if "\r\n" in question.question + "".join(question.choices)]
    demonstrations = load_questions("agieval", DATA, split="dev")
    assert Counter(Counter(question.subject for question in demonstrations).values()) == {3: 11, 5: 9, 4: 1}
    points = sum(question.points * len(question.answers) for question in load_questions("gaokao", DATA))
    assert points == 9702
