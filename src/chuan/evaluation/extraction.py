"""The letter that a reply in free text names as its answer, or none.

In: a reply. Out: a letter, or None, which is counted as a failure and never replaced by a guess. Knows no question.

The rule: all places that name an answer must name the same one letter. Such places are
  - a line that is a letter and nothing else but signs: "B", "(c)", "**D.**";
  - the beginning of the reply, where a sign follows the letter and no other letter is marked so: "B. Paris" is one,
    the list "A. Rome B. Paris" is none;
  - statements: "the answer is C", "Answer: C", "C is the correct choice", "I choose C", "答案是C", "故选C",
    "正确选项为C", "【答案】C", "\\boxed{C}".
Full-width letters and signs are read as plain ones. "答案是A或B" names two letters; "不选A" and "the answer is not A"
name none.
"""

from __future__ import annotations

import functools
import re
import unicodedata

_EMPHASIS = re.compile(r"[*_`$]+|\\text(?:bf|rm)?|<eoa>")
# What comes before the letter of a statement; the words of English in either case.
_STATEMENTS = (
    r"(?i:\b(?:answer|choice|option)(?: to [^.:\n]{1,60}?)?(?:\s+(?:is|must be|should be|would be)\b|\s*:)"
    r"(?:\s|:|\b(?:therefore|thus|option|choice|letter)\b)*)",
    r"(?i:(?<!not )(?<!n't )\b(?:choose|pick|select|go with)\b(?:\s|\b(?:option|choice|answer|letter)\b)*)",
    r"答案(?:应该|应|就)?(?:是|为|选择|选|】|\s*:)+(?:\s|:|选项)*",
    r"(?<!不)(?<!不能)(?<!不应)(?<!不应该)(?<!不该)(?<!不可)选(?:择|项是|项为|项:)?[\s:]*",
    r"正确的?(?:选项|答案|一项|项)?(?:是|为)[\s:]*(?:选项)?",
    r"\\boxed\s*",
)
_OPEN = r"""[\s("'\[{“「]*"""
# An "A" before a word is an article, unless a reason or another letter follows.
_ARTICLE = re.compile(r"\s+(?!(?:because|since|as|and|or)\b)[a-z]")


def extract_letter(reply: str, letters: str = "ABCD") -> str | None:
    """The one letter that the reply names; None where it names none, or several."""
    alone, marked, stated, more = _compile(letters)
    text = _EMPHASIS.sub("", unicodedata.normalize("NFKC", reply))
    text = "\n".join(" ".join(line.split()) for line in text.splitlines() if line.strip())
    named = {found[1].upper() for found in alone.finditer(text)}
    marks = {found[1] for found in marked.finditer(text)}
    if marked.match(text) and len(marks) == 1:
        named |= marks
    for pattern in stated:
        for found in pattern.finditer(text):
            if found[1] == "A" and _ARTICLE.match(text, found.end()):
                continue
            named.update(found[1].upper())
            further = more.match(text, found.end())
            while further:
                named.update(further[1])
                further = more.match(text, further.end())
    return named.pop() if len(named) == 1 else None


@functools.cache
def _compile(letters: str) -> tuple[re.Pattern[str], re.Pattern[str], list[re.Pattern[str]], re.Pattern[str]]:
    """A letter alone on its line, one with a sign behind it, statements, and what may follow "A" in "A or B"."""
    small = letters.lower()
    several = rf"([{letters}]+(?![A-Za-z0-9'])|(?<=\()[{small}](?=\)))"
    return (
        re.compile(rf"^[\s(\[「【]*([{letters}{small}])[\s)\]」】.。、:,;!]*$", re.MULTILINE),
        re.compile(rf"(?<![A-Za-z0-9])[(\[]?([{letters}])(?:[)\].。、:]|,(?!\s*[{letters}](?![a-z])))"),
        [
            *(re.compile(statement + _OPEN + several) for statement in _STATEMENTS),
            re.compile(
                rf"(?<![A-Za-z0-9])([{letters}])\)?\s+is the (?:(?:correct|right|best) )?(?:answer|choice|option)\b"
            ),
        ],
        re.compile(rf"[)\s]*(?:[、,/&和与及或]|还是|and\b|or\b)[\s(]*([{letters}])(?![A-Za-z0-9])"),
    )
