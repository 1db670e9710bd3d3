"""What a benchmark is made of: questions, and the subjects they are grouped by.

In: nothing. Out: the two frozen classes that every reader fills. Knows no file, no prompt and no model.
"""

from __future__ import annotations

from dataclasses import dataclass

LETTERS = "ABCDEFG"


@dataclass(frozen=True)
class Subject:
    """One file of a benchmark. `title` is the name that prompts show; the rest is what averages are grouped by."""

    name: str
    title: str
    category: str
    language: str
    level: str = ""
    is_hard: bool = False


@dataclass(frozen=True)
class Question:
    """One item as the authors wrote it; nothing is stripped but the marks of options and the CR of CRLF.

    `choices` are the texts of the options in the order of their letters, without marks; there are none where they
    stand inside `question` (GAOKAO-Bench) or where the answer is free (kind "cloze"). `options` are the same as
    the file has them, marks and order included. `answers` holds one text per blank, letters ("C", "ABD") or
    the free answer; it is empty where the authors keep the answers to themselves. `points` is what one right answer
    earns.
    """

    benchmark: str
    subject: str
    split: str
    id: str
    question: str
    choices: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    passage: str = ""
    options: tuple[str, ...] = ()
    explanation: str = ""
    kind: str = "single_choice"  # or multiple_choice, several_questions, five_of_seven, cloze
    points: float = 1.0

    @property
    def answer(self) -> str | None:
        """The answer of an item with one blank; None where it is not published, or where there are several blanks."""
        return self.answers[0] if len(self.answers) == 1 else None

    @property
    def is_four_choice(self) -> bool:
        """Whether exactly one of four options is right, which is what scoring by letters can score."""
        return self.kind == "single_choice" and (len(self.choices) == 4 or not self.choices)
