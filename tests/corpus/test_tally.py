import json
import random

from datatrove.data import Document

from chuan.corpus.stages import write_documents
from chuan.corpus.tally import SAMPLES, Tally, merge_tallies


def write(folder, rank, documents):
    with write_documents(str(folder)) as writer:
        for text, metadata in documents:
            writer.write(Document(text, f"{metadata['source']}/{text}", metadata=metadata), rank)


def test_counts_do_not_depend_on_who_counts(tmp_path):
    random.seed(0)
    for rank in range(4):
        write(
            tmp_path / "work" / "clean" / "rejected",
            rank,
            [(f"坏{rank}{i}", {"source": "a", "language": "zh", "reason": "rule:too_short"}) for i in range(9)],
        )
        write(
            tmp_path / "work" / "dedup" / "kept",
            rank,
            [(f"好{'字' * i}", {"source": "a", "language": "zh", "scrubbed": {"email": 2}}) for i in range(rank + 1)],
        )
    write(
        tmp_path / "work" / "dedup" / "cut", 0, [("cut", {"source": "a", "language": "zh", "reason": "cut:repeated"})]
    )
    results = []
    for tasks in (1, 3):
        output = tmp_path / f"tally{tasks}"
        for rank in range(tasks):
            Tally(str(tmp_path / "work"), str(tmp_path / "work" / "dedup" / "kept"), str(output)).run(None, rank, tasks)
        results.append(merge_tallies(output))
    assert results[0] == results[1]
    found = json.loads(json.dumps(results[0]))
    assert found["rejected"] == [["a", "zh", "rule:too_short", 36, 108, 180]]
    assert found["kept"] == [["a", "zh", 10, 20, 60]]
    assert found["cut"] == [["a", "zh", "cut:repeated", 1, 3, 3]]
    assert found["scrubbed"] == {"email": 20}
    assert found["lengths"] == [["zh", "1", 4], ["zh", "2", 5], ["zh", "3", 1]]
    assert len(found["samples"]["rule:too_short"]) == SAMPLES
