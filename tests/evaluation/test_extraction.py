"""Letters out of replies: what names one, what names none, and what is never guessed."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chuan.evaluation.extraction import extract_letter

NAMED = {
    # The letter alone, in all its dress.
    "B": "B", " b ": "B", "(C)": "C", "D.": "D", "**A**": "A", "Ｂ": "B", "（Ｃ）": "C", "「D」": "D",
    "`A`。": "A",
    "$\\boxed{C}$": "C", "\\boxed{\\text{(D)}}": "D", "Let me think.\n\nC\n": "C",
    "C\n\nBecause it is so.": "C",
    # At the beginning, with its option.
    "B. Paris": "B", "(D) the fourth": "D", "C、商鞅变法": "C", "A：因为如此": "A", "B，因为水是湿的。": "B",
    "A, because": "A",
    # English statements.
    "The answer is (C).": "C", "The correct answer is: B": "B", "the answer is (c)": "C", "Answer: D": "D",
    "ANSWER: **B**": "B", "The answer to the question is D, I think.": "D",
    "So the answer is therefore A.": "A",
    "The best choice would be option B.": "B", "C is the correct answer.": "C", "A) is the best choice": "A",
    "I would choose B here.": "B", "I'd go with option D": "D", "The answer is A because it is.": "A",
    "The answer is A": "A", "Between A and B, I choose B.": "B", "A. Rome\nB. Paris\n\nAnswer: B": "B",
    "The answer isn't obvious, but the answer is C.": "C", "Final answer: \\boxed{C}": "C",
    "The answer is “B”.": "B",
    # Chinese statements.
    "答案是B": "B", "答案：C": "C", "选 D": "D", "选D。": "D", "答案为（A）": "A", "答案是：Ｂ": "B",
    "故选C": "C", "【答案】B<eoa>": "B",
    "【答案】: A <eoa>": "A", "正确选项是D": "D", "正确的是C": "C", "我选择 A。": "A", "答案应为选项B": "B",
    "本题应选B，不选A。": "B",
    "因此，正确答案是 **C**。": "C", "A项错误，B项正确，所以答案选B": "B", "正确选项为：D": "D",
    "答案应该是C吧": "C",
}  # fmt: skip
UNNAMED = [
    # Refusals and silence.
    "", " \n", "I cannot answer this question.", "抱歉，我无法回答这个问题。", "As an AI, I can't choose.",
    "不知道", "E", "答案是E",
    # Several.
    "A or B", "AB", "A, B", "The answer is A or B.", "答案是A、C", "选BD", "答案：A和D", "选A还是B",
    "选A？不对，选C。",
    "The answer is A and C", "B\n\nThe answer is C.", "The answer is (A) or (B).", "A. Rome\nB. Paris",
    "The answer is B. No, wait: the answer is D.",
    # None at all, though letters are there.
    "The answer is not A.", "答案不是A", "不选B", "不能选C", "A cat sat on the mat.",
    "The answer is A matter of taste.",
    "Vitamin C is good for you.", "维生素C", "C语言是一门语言", "The answer is Bob.", "Answer: Democracy",
    "选项A是错误的",
    "A triangle has three sides", "I would not choose A", "I don't pick B", "Answer: None of them",
    "C is the wrong answer",
]  # fmt: skip


@pytest.mark.parametrize(("reply", "letter"), NAMED.items())
def test_what_is_named_is_found(reply: str, letter: str):
    assert extract_letter(reply) == letter


@pytest.mark.parametrize("reply", UNNAMED)
def test_what_is_not_named_is_not_guessed(reply: str):
    assert extract_letter(reply) is None


def test_long_replies_take_no_time_to_speak_of():
    for part in (" ", "\n", "答案是 ", "选", "answer to ", "(", "A,", "Answer: "):
        assert extract_letter(part * 50_000 + "E") is None


def test_other_letters():
    assert extract_letter("The answer is E", "ABCDE") == "E"
    assert extract_letter("答案是D", "ABC") is None


@given(st.text(alphabet=string.ascii_letters + " .,:()（）Ａ答案是选不\n"))
def test_any_text_gives_a_letter_of_its_own_or_none(reply: str):
    letter = extract_letter(reply)
    assert letter is None or (letter in "ABCD" and letter in reply.upper().replace("Ａ", "A"))


@given(st.sampled_from("ABCD"), st.sampled_from("ABCD"))
def test_two_that_differ_are_none(first: str, second: str):
    reply = f"The answer is {first}. 答案是{second}。"
    assert extract_letter(reply) == (first if first == second else None)
