"""The measurement on a GPU, at a small size on a CPU: it goes through the product's own step."""

import json
import math
import sys

import pytest
from benchmarks.gpu_training import IGNORED, RandomRows, find_type, main

from chuan.training.gpus import GPUS


def test_it_runs(monkeypatch, capsys):
    options = "--device cpu --tiny --layers 1 --rows 2 --micro-rows 1 --steps 1 --no-compile --documents 3"
    monkeypatch.setattr(sys, "argv", ["gpu_training.py", *options.split()])
    main()
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert values["losses"][0] == pytest.approx(math.log(512), rel=0.02)
    assert len(values["losses"]) == 3
    assert values["tokens_per_second"] == pytest.approx(2 * 256 / values["seconds"][0])


def test_rows_hold_as_many_documents_as_asked_for():
    row = RandomRows(length=100, vocabulary=50, documents=4).row(3)
    assert row.tokens.shape == row.targets.shape == row.documents.shape == (100,)
    assert sorted(set(row.documents.tolist())) == [0, 1, 2, 3]
    assert (row.targets == IGNORED).sum() == 4
    assert (RandomRows(length=100, vocabulary=50, documents=1).row(3).targets == IGNORED).sum() == 1


def test_types_are_found_by_the_names_of_the_driver():
    assert find_type("NVIDIA H200") is GPUS["h200"]
    assert find_type("NVIDIA H100 80GB HBM3") is GPUS["h100-sxm"]
    assert find_type("CPU") is None
