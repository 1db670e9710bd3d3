"""The four published tables of the model card of Baichuan-7B, cell by cell, with where each figure comes from.

In: published.csv beside this file. Out: a `PublishedRow` for every line of the tables. Knows no run of the user's.
One model has different names in different tables; `model` is the one used here, `printed` what the card says.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from importlib import resources

SOURCE = "the model card of Baichuan-7B, https://github.com/baichuan-inc/Baichuan-7B"
BENCHMARKS = ("C-Eval", "Gaokao", "AGIEval", "MMLU")

# What the card asked, and how its averages are made.
SETTINGS = {
    "C-Eval": "test split, 5-shot; averages over subjects (macro)",
    "Gaokao": "single-choice questions, 5-shot; the split was never published",
    "AGIEval": "four-option single-answer questions, 5-shot; the split was never published",
    "MMLU": "test split, 5-shot; averages over questions (micro)",
}
_AQUILA = (
    "from its publisher's own site, https://model.baai.ac.cn/model-detail/100098; the card gives it for reference only"
)
FOOTNOTES = {
    "C-Eval": {"*": _AQUILA},
    "Gaokao": {"*": _AQUILA},
    "AGIEval": {"*": _AQUILA},
    "MMLU": {
        "0": "measured again by the card's authors",
        "1": "the Open LLM Leaderboard, https://huggingface.co/spaces/HuggingFaceH4/open_llm_leaderboard",
        "2": "Papers with Code, https://paperswithcode.com/sota/multi-task-language-understanding-on-mmlu",
    },
}
# The figures of these marks were measured by the card's authors; the others came from elsewhere, asked otherwise.
MEASURED_MARKS = ("", "0")

_SLIP = "Open-LLaMA-v2 and ChatGLM-6B have one figure, here and in {}: as printed, probably a copying slip of the card"
NOTES = {"Gaokao": _SLIP.format("AGIEval"), "AGIEval": _SLIP.format("Gaokao")}


@dataclass
class PublishedRow:
    """One line of a table: per cent by column, None where the card prints no figure."""

    benchmark: str
    model: str
    printed: str
    parameters: float | None  # in units of 1e9; None where the name does not state it
    mark: str
    values: dict[str, float | None] = field(default_factory=dict)


def load_published() -> list[PublishedRow]:
    """All rows of the four tables, in the order of the card."""
    rows: dict[tuple[str, str], PublishedRow] = {}
    text = resources.files("chuan.evaluation").joinpath("published.csv").read_text(encoding="utf-8")
    for cell in csv.DictReader(text.splitlines()):
        size = float(cell["parameters_b"]) if cell["parameters_b"] else None
        row = PublishedRow(cell["benchmark"], cell["model"], cell["printed"], size, cell["mark"])
        row = rows.setdefault((row.benchmark, row.printed), row)
        row.values[cell["column"]] = float(cell["value"]) if cell["value"] else None
    return list(rows.values())
