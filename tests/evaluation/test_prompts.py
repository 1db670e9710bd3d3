"""Golden prompts: made-up questions in the benchmarks' own files, and each prompt as its authors describe it.

The expected texts are written by hand from the protocols' descriptions, to the blank and the newline.
"""

from pathlib import Path

import pytest

from chuan.errors import ChuanError
from chuan.evaluation.prompts import build_prompts, digest_questions, list_subjects, load_asks
from chuan.evaluation.protocols import PROTOCOLS, find_protocol
from tests.evaluation.tiny_data import write_agieval, write_ceval, write_csv, write_gaokao, write_mmlu

DATA = Path(__file__).parents[3] / "shared" / "evaluation"
MMLU_ROWS = [
    [" Which is red?", "grass", "blood ", "None", "snow", "B"],
    ["2 + 2 =\r\n?", "4", "5", "NA", "1.50", "A"],
    ["What falls?\n", "rain", "tax", "love", "up", "C"],
]
CEVAL_ROWS = [
    ["雪是____。", "红的", "白的", " 黑的", "绿的", "B"],
    ["一加一\r\n等于", "2", "3", "4", "5", "A"],
    [" 水往____流。", "低处", "高处", "左", "右", "A"],
]
# Of AGIEval and Gaokao a seed says which ones are shown; with two shots of three questions one is asked.
GAOKAO_ROWS = [
    ("1．（5分）雪是\nA．红 B．白 C．黑 D．绿\n", "B"),
    ("2．水往\nA．低 B．高 C．左 D．右\n", "A"),
    ("3．日出\nA．西 B．南 C．东 D．北\n", "C"),
]

MMLU_BAICHUAN = (
    "The following are multiple choice questions (with answers) about  high school physics.\n"
    "\n"
    " Which is red?\nA. grass\nB. blood \nC. None\nD. snow\nAnswer: B\n"
    "\n"
    "2 + 2 =\n?\nA. 4\nB. 5\nC. NA\nD. 1.50\nAnswer: A\n"
    "\n"
    "What falls?\n\nA. rain\nB. tax\nC. love\nD. up\nAnswer:"
)
MMLU_HARNESS = (
    "The following are multiple choice questions (with answers) about high school physics.\n"
    "\n"
    "Which is red?\nA. grass\nB. blood \nC. None\nD. snow\nAnswer: B\n"
    "\n"
    "2 + 2 =\n?\nA. 4\nB. 5\nC. NA\nD. 1.50\nAnswer: A\n"
    "\n"
    "What falls?\nA. rain\nB. tax\nC. love\nD. up\nAnswer:"
)
CEVAL_BAICHUAN = (
    "以下是中国关于操作系统考试的单项选择题，请选出其中的正确答案。\n"
    "\n"
    "雪是____。\nA. 红的\nB. 白的\nC.  黑的\nD. 绿的\n答案：B\n"
    "一加一\n等于\nA. 2\nB. 3\nC. 4\nD. 5\n答案：A\n"
    " 水往____流。\nA. 低处\nB. 高处\nC. 左\nD. 右\n答案："
)
CEVAL_OFFICIAL = (
    "以下是中国关于操作系统考试的单项选择题，请选出其中的正确答案。\n"
    "\n"
    "雪是____。\nA. 红的\nB. 白的\nC.  黑的\nD. 绿的\n答案：B\n"
    "\n"
    "一加一\n等于\nA. 2\nB. 3\nC. 4\nD. 5\n答案：A\n"
    "\n"
    " 水往____流。\nA. 低处\nB. 高处\nC. 左\nD. 右\n答案："
)
CEVAL_HARNESS = (
    "以下是中国关于操作系统的单项选择题，请选出其中的正确答案。\n"
    "\n"
    "雪是____。\nA. 红的\nB. 白的\nC.  黑的\nD. 绿的\n答案： B\n"
    "\n"
    "一加一\n等于\nA. 2\nB. 3\nC. 4\nD. 5\n答案： A\n"
    "\n"
    "水往____流。\nA. 低处\nB. 高处\nC. 左\nD. 右\n答案："
)
AGIEVAL = (
    "The following are multiple choice questions (with answers).\n"
    "\n"
    "A text.\n Which is red?\nA. grass\nB. blood\nC. None\nD. snow\nAnswer:B\n"
    "A text.\n2 + 2 =\n?\nA. 4\nB. 5\nC. NA\nD. 1.50\nAnswer:A\n"
    "A text.\nWhat falls?\n\nA. rain\nB. tax\nC. love\nD. up\nAnswer:"
)
AGIEVAL_CHINESE = (
    "以下是单项选择题，请选出其中的正确答案。\n"
    "\n"
    "雪是____。\nA. 红的\nB. 白的\nC. 黑的\nD. 绿的\n答案：B\n"
    "一加一\n等于\nA. 2\nB. 3\nC. 4\nD. 5\n答案：A\n"
    " 水往____流。\nA. 低处\nB. 高处\nC. 左\nD. 右\n答案："
)
GAOKAO = (
    "以下是中国关于历史考试的单项选择题，请选出其中的正确答案。\n"
    "\n"
    "1．（5分）雪是\nA．红 B．白 C．黑 D．绿\n答案：B\n"
    "2．水往\nA．低 B．高 C．左 D．右\n答案：A\n"
    "3．日出\nA．西 B．南 C．东 D．北\n答案："
)
# Benchmark and protocol -> subject, prompt of the last question after the other two, form of the letters, whether the
# model's own beginning comes first, kind of average.
GOLDEN = {
    ("mmlu", "baichuan"): ("high_school_physics", MMLU_BAICHUAN, "bare", False, "micro"),
    ("mmlu", "official"): ("high_school_physics", MMLU_BAICHUAN, "spaced", True, "micro"),
    ("mmlu", "harness"): ("high_school_physics", MMLU_HARNESS, "spaced", True, "micro"),
    ("ceval", "baichuan"): ("operating_system", CEVAL_BAICHUAN, "bare", False, "macro"),
    ("ceval", "official"): ("operating_system", CEVAL_OFFICIAL, "bare", True, "macro"),
    ("ceval", "harness"): ("operating_system", CEVAL_HARNESS, "spaced", True, "micro"),
    ("agieval", "baichuan"): ("sat-en", AGIEVAL, "bare", False, "micro"),
    ("agieval-v1", "baichuan"): ("gaokao-history", AGIEVAL_CHINESE, "bare", False, "micro"),
    ("gaokao", "baichuan"): ("2010-2022_History_MCQs", GAOKAO, "bare", False, "micro"),
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_mmlu(tmp_path, "high_school_physics", dev=MMLU_ROWS[:2], test=MMLU_ROWS[2:])
    write_ceval(tmp_path, "operating_system", dev=CEVAL_ROWS[:2], test=[row[:5] for row in CEVAL_ROWS[2:]])
    write_agieval(tmp_path, "sat-en", MMLU_ROWS, passage="A text.")
    write_agieval(tmp_path, "gaokao-history", CEVAL_ROWS, v1=True)
    write_gaokao(tmp_path, "2010-2022_History_MCQs", GAOKAO_ROWS)
    return tmp_path


def encode(texts):
    """A token a character, as many tests of fitting want it."""
    return [[ord(character) for character in text] for text in texts]


def test_every_protocol_has_a_golden_prompt():
    assert PROTOCOLS.keys() == GOLDEN.keys() | {("gaokao", "official")}  # that one's is in test_exam.py


@pytest.mark.parametrize(("benchmark", "name"), GOLDEN)
def test_prompts_to_the_byte(data: Path, benchmark: str, name: str):
    subject, expected, letters, bos, average = GOLDEN[benchmark, name]
    protocol = find_protocol(benchmark, name)
    assert (protocol.letters, protocol.bos, protocol.average) == (letters, bos, average)
    if protocol.drawn:
        asks = [find_last_asked(data, benchmark, subject)]
    else:
        asks = load_asks(benchmark, data, [subject], "test", 2, None, protocol.drawn)
    (prompt,) = build_prompts(protocol, asks, encode, 4096)
    assert prompt.text == expected
    assert prompt.token_ids == [ord(character) for character in expected]
    assert (prompt.dropped, prompt.cut) == (0, 0)


def find_last_asked(data: Path, benchmark: str, subject: str):
    """The split of the first seed that asks the last question and shows the others, in the order of the file."""
    for seed in range(50):
        (ask,) = load_asks(benchmark, data, [subject], "test", 2, seed, True)
        if ask.question.id == "2":
            assert [shot.id for shot in ask.demonstrations] == ["0", "1"]
            return ask
    raise AssertionError


@pytest.mark.parametrize(("benchmark", "name"), GOLDEN)
def test_without_demonstrations_header_and_question_are_left(data: Path, benchmark: str, name: str):
    subject, expected, *_ = GOLDEN[benchmark, name]
    protocol = find_protocol(benchmark, name)
    (prompt, *_) = build_prompts(
        protocol, load_asks(benchmark, data, [subject], "test", 0, 7, protocol.drawn)[-1:], encode, 4096
    )
    begin = expected.index("\n\n") + 2
    assert prompt.text.startswith(expected[:begin])
    assert expected.endswith(prompt.text[begin:])
    assert prompt.text.count("答案：") + prompt.text.count("Answer:") == 1


def test_what_does_not_fit_loses_its_last_demonstrations(data: Path):
    asks = load_asks("mmlu", data, ["high_school_physics"], "test", 2, None, False)
    protocol = find_protocol("mmlu", "baichuan")
    first = MMLU_BAICHUAN.replace("2 + 2 =\n?\nA. 4\nB. 5\nC. NA\nD. 1.50\nAnswer: A\n\n", "")
    none = first.replace(" Which is red?\nA. grass\nB. blood \nC. None\nD. snow\nAnswer: B\n\n", "")
    for limit, text, dropped in [
        (len(MMLU_BAICHUAN), MMLU_BAICHUAN, 0),
        (len(MMLU_BAICHUAN) - 1, first, 1),
        (len(first), first, 1),
        (len(first) - 1, none, 2),
        (len(none), none, 2),
    ]:
        (prompt,) = build_prompts(protocol, asks, encode, limit)
        assert (prompt.text, prompt.dropped, prompt.cut) == (text, dropped, 0)
        assert prompt.token_ids == [ord(character) for character in text]
    # The question itself is never cut: it cannot be asked.
    (prompt,) = build_prompts(protocol, asks, encode, len(none) - 1)
    assert prompt.token_ids is None
    assert prompt.dropped == 2


def test_mmlu_keeps_to_2048_tokens_whatever_the_model_can_hold(data: Path):
    def encode_long(texts):
        return [[1] * (20 * len(text)) for text in texts]

    asks = load_asks("mmlu", data, ["high_school_physics"], "test", 2, None, False)
    for name in ("baichuan", "official"):
        (prompt,) = build_prompts(find_protocol("mmlu", name), asks, encode_long, 100_000)
        assert prompt.token_ids is None or len(prompt.token_ids) <= 2048
    (prompt,) = build_prompts(find_protocol("mmlu", "harness"), asks, encode_long, 100_000)
    assert len(prompt.token_ids or []) == 20 * len(MMLU_HARNESS)


def test_the_harness_cuts_the_beginning(data: Path):
    asks = load_asks("ceval", data, ["operating_system"], "test", 2, None, False)
    (prompt,) = build_prompts(find_protocol("ceval", "harness"), asks, encode, 50)
    assert prompt.token_ids == [ord(character) for character in CEVAL_HARNESS[-50:]]
    assert (prompt.dropped, prompt.cut) == (0, len(CEVAL_HARNESS) - 50)


def test_a_seed_draws_demonstrations_anew_for_every_question_and_always_the_same(tmp_path: Path):
    rows = [[f"question {n}", "a", "b", "c", "d", "A"] for n in range(30)]
    write_mmlu(tmp_path, "anatomy", dev=rows[:5], test=rows[5:])
    first = load_asks("mmlu", tmp_path, ["anatomy"], "test", 3, 7, False)
    orders = {tuple(shot.id for shot in ask.demonstrations) for ask in first}
    assert len(orders) > 10
    assert all(len(set(order)) == 3 for order in orders)
    assert load_asks("mmlu", tmp_path, ["anatomy"], "test", 3, 7, False) == first
    assert load_asks("mmlu", tmp_path, ["anatomy"], "test", 3, 8, False) != first


def test_drawn_splits_show_nothing_that_they_ask(tmp_path: Path):
    write_gaokao(tmp_path, "2010-2022_Math_I_MCQs", [(f"q{n}", "A") for n in range(20)])
    asks = load_asks("gaokao", tmp_path, ["2010-2022_Math_I_MCQs"], "test", 5, 0, True)
    shown = {shot.id for ask in asks for shot in ask.demonstrations}
    assert len(shown) == 5
    assert sorted([*shown, *(ask.question.id for ask in asks)], key=int) == [str(n) for n in range(20)]
    other = load_asks("gaokao", tmp_path, ["2010-2022_Math_I_MCQs"], "test", 5, 1, True)
    assert {shot.id for shot in other[0].demonstrations} != shown


def test_drawn_splits_take_only_what_letters_can_score(tmp_path: Path):
    rows = [[f"q{n}", "a", "b", "c", "d", "A B D" if n == 3 else "C"] for n in range(8)]
    write_agieval(tmp_path, "gaokao-mathqa", rows)
    asks = load_asks("agieval", tmp_path, ["gaokao-mathqa"], "test", 2, 0, True)
    ids = {question.id for ask in asks for question in (ask.question, *ask.demonstrations)}
    assert ids == {"0", "1", "2", "4", "5", "6", "7"}


def test_subjects_that_letters_can_score():
    agieval = list_subjects("agieval", None, True)
    assert len(agieval) == 14
    assert "sat-en-without-passage" not in agieval  # it repeats sat-en
    assert len(list_subjects("gaokao", None, True)) == 7
    assert len(list_subjects("mmlu", None, False)) == 57
    assert list_subjects("mmlu", " virology,anatomy ,virology", False) == ["virology", "anatomy"]
    with pytest.raises(ChuanError, match=r"mmlu has no subject virologie; it has abstract_algebra"):
        list_subjects("mmlu", "virologie", False)


@pytest.mark.skipif(not DATA.is_dir(), reason="the benchmarks are not beside this checkout")
def test_how_much_is_asked_of_the_real_files():
    for benchmark, count in [("mmlu", 14042), ("agieval", 4608), ("agieval-v1", 4578), ("gaokao", 1383)]:
        drawn = find_protocol(benchmark, "baichuan").drawn
        asks = load_asks(benchmark, DATA, list_subjects(benchmark, None, drawn), "test", 5, 0 if drawn else None, drawn)
        assert len(asks) == count
        assert {len(ask.demonstrations) for ask in asks} == {5}
        assert {ask.question.answer for ask in asks} == {"A", "B", "C", "D"}


def test_what_cannot_be_asked_is_said(data: Path):
    with pytest.raises(ChuanError, match=r"2 demonstrations for high_school_physics; ask for --shots 2"):
        load_asks("mmlu", data, ["high_school_physics"], "test", 3, None, False)
    with pytest.raises(ChuanError, match=r"anatomy_test\.csv cannot be read"):
        load_asks("mmlu", data, ["high_school_physics", "anatomy"], "test", 2, None, False)
    with pytest.raises(ChuanError, match=r"no question that letters can score"):
        load_asks("agieval", data, ["sat-en"], "test", 3, 0, True)
    with pytest.raises(ChuanError, match=r"protocol harness; it has baichuan"):
        find_protocol("gaokao", "harness")


def test_the_digest_knows_the_questions_not_their_files(data: Path, tmp_path: Path):
    def digest() -> str:
        return digest_questions(load_asks("mmlu", data, ["high_school_physics"], "test", 2, None, False))

    before = digest()
    path = data / "mmlu/data/test/high_school_physics_test.csv"
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n"))
    assert digest() == before
    write_csv(path, [["What falls?\n", "rain", "tax", "love", "up", "D"]])
    assert digest() != before
