"""Each rule by the reason it returns, in both languages."""

import itertools
import random

import pytest

from chuan.corpus.rules import ChineseLimits, EnglishLimits, RuleSettings, find_reason

DEFAULTS = RuleSettings()
EN = (
    "The river rises in the hills behind the town. In spring it carries the melted snow down to the valley, and the "
    "farmers open the gates of their fields. Nobody knows who built the first canal. An old story tells of a monk.\n"
    "He came from the north with nothing but a spade, and it took him nine years to dig. When the water came at last, "
    "he had already left. People still leave bread at the place where he slept.\n"
)
ZH = (
    "这条河发源于镇子后面的山里。春天，融化的雪水顺着河道流进山谷，农民们打开田边的水闸。没有人知道第一条水渠是谁修的。\n"
    "老人们说，从前有一个和尚从北方来，除了一把铁锹什么也没有带，一共挖了九年。水终于来的时候，他已经走了。\n"
    "直到今天，村里的人还会在他睡过的地方放一些馒头，并且给孩子们讲这个故事。\n"
)
random.seed(0)
_WORDS = [
    "time",
    "river",
    "stone",
    "house",
    "paper",
    "window",
    "garden",
    "letter",
    "summer",
    "winter",
    "bridge",
    "silver",
]
_CHARACTERS = "山水田地天人口手足日月火木金土石雨风云雪花草虫鱼鸟马牛羊"


def keywords(language):
    """Many lines of words that make no sentence, with no line twice."""
    if language == "en":
        return "\n".join(" ".join(random.choices(_WORDS, k=6)) for _ in range(80))
    return "\n".join(" ".join("".join(random.choices(_CHARACTERS, k=2)) for _ in range(6)) for _ in range(80))


def sentences(language, count, end):
    """Short lines that end as asked, with no line twice."""
    if language == "en":
        return "\n".join(f"And then we saw the {' '.join(random.choices(_WORDS, k=5))}{end}" for _ in range(count))
    return "\n".join(f"然后我们看见了{''.join(random.choices(_CHARACTERS, k=9))}的样子{end}" for _ in range(count))


CASES = {
    "too_short": {"en": "Yes, it is.", "zh": "好的。"},
    "too_long": {"en": EN * 1600, "zh": ZH * 1700},
    "mojibake": {"en": EN + "It donâ€™t work, the â€œmonkâ€\u009d said.", "zh": ZH + "锟斤拷锟斤拷"},
    "few_letters": {
        "en": "12 34 56 78, 90 12 | 34 | 56 of 78 and 90 the 12 34 56\n" * 3,
        "zh": "1 2 3 4 5 第一行 6 7 8 9 0 + - * / % 二三 " * 3,
    },
    "word_length": {"en": "thisisonelongword " * 2 + "averyveryverylongwordindeed " * 2 + "internationalization " * 4},
    "symbols": {"en": EN[:200] + "... and ... so ... on ... it ... goes ... # # # #", "zh": ZH[:60] + "★★★★★★★★★★★★"},
    "bullets": {
        "en": "\n".join(f"- the {a} of a {b}" for a, b in itertools.pairwise(_WORDS)),
        "zh": "\n".join(f"- 关于{a}的{b}" for a, b in itertools.pairwise(_CHARACTERS)),
    },
    "ellipses": {"en": sentences("en", 12, "..."), "zh": sentences("zh", 12, "……")},
    "unpunctuated_lines": {"en": sentences("en", 60, ""), "zh": sentences("zh", 60, "")},
    "no_punctuation": {"zh": "\n".join(["在这里" + "".join(random.choices(_CHARACTERS, k=40)) for _ in range(9)])},
    "no_function_words": {"en": keywords("en").replace("\n", ".\n"), "zh": keywords("zh").replace("\n", "。\n")},
    "no_sentences": {
        "en": "\n".join(f"and the {' '.join(random.choices(_WORDS, k=6))} of it)" for _ in range(60)),
        "zh": "\n".join(f"在，的{''.join(random.choices(_CHARACTERS, k=9))}）" for _ in range(60)),
    },
    "duplicate_lines": {
        "en": EN + "We are open on every day of the week.\n" * 12,
        "zh": ZH + "本店每天早上九点开门，欢迎光临。\n" * 8,
    },
    "repeated_text": {
        "en": EN + " ".join(f"{i} is the number of the house in which the old monk slept." for i in range(30)),
        "zh": ZH + "".join(f"{i}号房子就是那个老和尚当年在这个村子里面睡过一个晚上的地方。" for i in range(30)),
    },
}


@pytest.mark.parametrize(
    ("name", "language", "text"),
    [(name, language, text) for name, texts in CASES.items() for language, text in texts.items()],
)
def test_each_rule_by_its_reason(name, language, text):
    assert find_reason(text, language, DEFAULTS) == f"rule:{name}"
    limits = {"en": EnglishLimits, "zh": ChineseLimits}[language](off=[name])
    assert find_reason(text, language, RuleSettings(**{language: limits})) != f"rule:{name}"


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", EN),
        ("zh", ZH),
        ("en", "How many English kings bore the name William?\nFour of them."),
        ("zh", "枯木逢春\n枯树又逢到春天，比喻重新获得生机。"),
        ("zh", "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。"),
        ("zh", "设$a>0$，证明$\\sqrt{a}+\\frac{1}{\\sqrt{a}} \\geqslant 2$，并说明等号何时成立。"),
        ("en", "# tar\n\nArchiving utility.\n\n- Create an archive from files:\n  `tar cf target.tar file1 file2`\n"),
        ("en", "A loop in C:\n\n```c\nfor (int i = 0; i < n; i++) {\n    a[i] += b[i];\n}\nfor (;;) {}\n```\n" + EN),
        ("zh", "```\n" + "\n".join(f"x{i} = {i};" for i in range(200)) + "\n```\n代码如上，请运行。"),
    ],
)
def test_good_text_stays(language, text):
    assert find_reason(text, language, DEFAULTS) is None


def test_bounds_are_those_of_the_recipe():
    assert find_reason(EN, "en", RuleSettings(en=EnglishLimits(min_length=200))) == "rule:too_short"
    assert find_reason(ZH, "zh", RuleSettings(en=EnglishLimits(min_length=200))) is None
