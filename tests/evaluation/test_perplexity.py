"""Perplexity, against transformers' own loss on the same windows."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

import chuan
from chuan.errors import ChuanError
from chuan.evaluation.perplexity import (
    measure_languages,
    measure_positions,
    measure_text,
    measure_window,
    save_positions_plot,
    split_languages,
)

TEXT = "The river ran on.\n温故而知新，可以为师矣。\n" * 12


@pytest.fixture(scope="module")
def model(smollm2_path):
    return chuan.load(str(smollm2_path), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def twin(model, tmp_path_factory):
    return AutoModelForCausalLM.from_pretrained(model.save(tmp_path_factory.mktemp("m") / "m"), dtype=torch.float32)


def transformers_loss(twin, ids, context, stride):
    """The loop of transformers' page on perplexity: labels of -100 for what was scored before."""
    nats, previous = 0.0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + context, len(ids))
        window = torch.tensor([ids[begin:end]])
        labels = window.clone()
        labels[:, : -(end - previous)] = -100
        counted = int((labels[:, 1:] != -100).sum())
        nats += float(twin(window, labels=labels).loss.detach()) * counted
        previous = end
        if end == len(ids):
            return nats
    raise AssertionError


@pytest.mark.parametrize(("context", "stride"), [(64, 32), (64, 63), (4096, None)])
def test_the_loss_is_transformers_own(model, twin, context, stride):
    found = measure_text(model.decoder, model.tokenizer, TEXT, context, stride)
    ids = [*model.tokenizer.prompt_prefix, *model.tokenizer.encode(TEXT)]
    assert found.tokens == len(ids) - 1
    assert found.nats == pytest.approx(transformers_loss(twin, ids, context, stride or 2048), rel=1e-4)
    assert found.perplexity == pytest.approx(math.exp(found.nats / found.tokens))


def test_bits_per_byte_count_the_bytes_that_were_scored(model):
    found = measure_text(model.decoder, model.tokenizer, TEXT)
    first = 0 if model.tokenizer.prompt_prefix else len(model.tokenizer.decode(model.tokenizer.encode(TEXT)[:1]))
    assert found.size == len(TEXT.encode()) - first
    assert found.bits_per_byte == pytest.approx(found.nats / math.log(2) / found.size)


def test_languages_are_told_apart_by_line(model):
    parts = split_languages(TEXT)
    assert parts["zh"] == "温故而知新，可以为师矣。\n" * 12
    assert parts["other"] == "The river ran on.\n" * 12
    found = measure_languages(model.decoder, model.tokenizer, TEXT)
    assert found["all"] == found["zh"] + found["other"]
    assert found["zh"].bits_per_byte != found["other"].bits_per_byte


def test_chunks_change_nothing(model, monkeypatch):
    ids = model.tokenizer.encode(TEXT)
    whole = measure_window(model.decoder, ids)
    monkeypatch.setattr("chuan.evaluation.perplexity._CHUNK", 17)
    torch.testing.assert_close(measure_window(model.decoder, ids), whole, atol=2e-4, rtol=1e-4)


def test_positions_beyond_the_trained_context(model, tmp_path):
    ids = model.tokenizer.encode(TEXT)
    length = len(ids) // 2
    buckets = measure_positions(model.decoder, ids, length, bucket=50)
    assert buckets[0].first == 1
    assert buckets[-1].last == length - 1
    assert sum(bucket.tokens for bucket in buckets) == 2 * (length - 1)
    both = torch.cat(
        [measure_window(model.decoder, ids[:length]), measure_window(model.decoder, ids[length : 2 * length])]
    )
    assert sum(b.loss * b.tokens for b in buckets) == pytest.approx(float(both.sum()), rel=1e-4)
    save_positions_plot(buckets, 128, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_measured_is_refused(model):
    with pytest.raises(ChuanError, match="too short"):
        measure_text(model.decoder, model.tokenizer, "")
    with pytest.raises(ChuanError, match="a stride of 64 does not fit a context of 64"):
        measure_text(model.decoder, model.tokenizer, TEXT, 64, 64)
    with pytest.raises(ChuanError, match="give a longer one"):
        measure_positions(model.decoder, [1, 2, 3], 8)
