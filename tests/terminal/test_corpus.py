from chuan.corpus.build import StageProgress
from chuan.terminal.corpus import describe, stage_bars, summarise


def test_piped_each_stage_is_a_line_when_it_is_done(capsys):
    with stage_bars() as progress:
        progress(StageProgress("clean", 0, 2, 100, 5_000_000, 1.0))
        for _ in range(2):
            progress(StageProgress("clean", 2, 2, 300, 25_000_000, 3.2))
        progress(StageProgress("report", 2, 2, 0, 0, 0.4))
    assert capsys.readouterr().err.splitlines() == [
        "clean: 2 tasks, 300 documents, 25.0 MB, 3 s",
        "report: 2 tasks, 0 s",
    ]


def test_what_is_said_at_the_end():
    counts = {"documents": 1200, "bytes": 5_000_000}
    report = {"total": {"in": counts, "rejected": counts, "kept": counts, "bad": 3}, "shards": None}
    assert summarise(report) == (
        "1,200 documents (5.00 MB) came in, 1,200 left, 1,200 (5.00 MB) stayed; 3 records could not be read"
    )
    report["shards"] = {"splits": {"train": {"tokens": 5000}, "validation": {"tokens": 10}}}
    assert summarise(report).splitlines()[1] == "train: 5,000 tokens, validation: 10 tokens"
    assert describe(StageProgress("dedup", 0, 1, 0, 0, 0.0)) == ""
