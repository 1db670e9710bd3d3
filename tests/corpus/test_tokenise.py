"""Token shards: what is in them is what the tokenizer says, and nothing but text and seed decides where."""

from pathlib import Path

import numpy as np
import pytest

from chuan.corpus.build import build_corpus
from chuan.corpus.shards import ShardReader
from chuan.errors import ChuanError
from chuan.tokenizer.folder import load_tokenizer
from tests.corpus.test_build import corpus, documents_of, recipe  # noqa: F401 (a fixture)
from tests.support.tiny_tokenizer import train_tiny_sentencepiece


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(train_tiny_sentencepiece())
    return path


def build(corpus: Path, output: str, vocabulary: Path, *overrides: str) -> Path:  # noqa: F811
    settings = [f"tokens.tokenizer={vocabulary}", "tokens.shards=3", "tokens.validation_share=0.2"]
    build_corpus(recipe(corpus, output, *settings, *overrides))
    return corpus / output


def texts_of(folder: Path, split: str, vocabulary: Path) -> list[str]:
    reader = ShardReader(folder / "shards", split)
    tokenizer = load_tokenizer(vocabulary)
    documents = [reader.document(number) for number in range(len(reader))]
    assert all(tokens[-1] == tokenizer.eos_id for tokens in documents)
    return [tokenizer.decode(tokens.tolist()) for tokens in documents]


def test_the_shards_hold_every_document_once(corpus, vocabulary):  # noqa: F811
    out = build(corpus, "out", vocabulary)
    train, validation = (texts_of(out, split, vocabulary) for split in ("train", "validation"))
    assert len(train) + len(validation) == 120
    assert len({*train, *validation}) == 120
    assert 10 < len(validation) < 40
    reader = ShardReader(out / "shards")
    reader.verify()
    assert reader.dtype == np.dtype("<u2")
    whole = reader.window(0, reader.token_count)
    assert len(whole.starts) == len(reader)
    assert {reader.describe(number).source for number in range(len(reader))} == {"zh", "en"}
    order = [reader.describe(number).source for number in range(len(reader))]
    assert order != sorted(order)  # mixed


def test_workers_change_no_byte_and_texts_keep_their_split(corpus, vocabulary):  # noqa: F811
    one, two = build(corpus, "one", vocabulary), build(corpus, "two", vocabulary, "workers=2")
    assert documents_of(one) == documents_of(two)
    assert any("shards" in name for name in documents_of(one))
    other = build(corpus, "other", vocabulary, "seed=9")
    assert set(texts_of(one, "validation", vocabulary)) == set(texts_of(other, "validation", vocabulary))
    assert texts_of(one, "train", vocabulary) != texts_of(other, "train", vocabulary)


def test_weights_repeat_and_thin_out(corpus, vocabulary):  # noqa: F811
    path = corpus / "recipe.toml"
    text = path.read_text().replace('name = "zh"', 'name = "zh"\nweight = 2.5')
    path.write_text(text.replace('name = "en"', 'name = "en"\nweight = 0.5'))
    reader = ShardReader(build(corpus, "out", vocabulary, "tokens.validation_share=0.0") / "shards")
    found = [reader.describe(number) for number in range(len(reader))]
    zh = [document for document in found if document.source == "zh"]
    assert len({document.hash for document in zh}) == 60
    assert sum(document.copy < 2 for document in zh) == 120
    assert 15 <= sum(document.copy == 2 for document in zh) <= 45
    assert 15 <= sum(document.source == "en" for document in found) <= 45


def test_the_mixture_multiplies_by_source_and_language(corpus, vocabulary):  # noqa: F811
    path = corpus / "recipe.toml"
    path.write_text(path.read_text().replace('name = "zh"', 'name = "zh"\nweight = 1.5'))
    mixture = "mixture={languages = {zh = 2.0}, sources = {en = 0.0}}"
    reader = ShardReader(build(corpus, "out", vocabulary, "tokens.validation_share=0.0", mixture) / "shards")
    found = [reader.describe(number) for number in range(len(reader))]
    assert {document.source for document in found} == {"zh"}
    assert len(found) == 180
    assert reader.manifest.mixture["weights"] == {"zh": {"en": 1.5, "zh": 3.0}, "en": {"en": 0.0, "zh": 0.0}}


@pytest.mark.parametrize(
    ("mixture", "complaint"),
    [
        ("{sources = {fr = 1.0}}", "mixture.sources names fr, which is no source"),
        ("{languages = {fr = 1.0}}", "mixture.languages.fr"),
        ("{sources = {en = -1.0}}", "mixture.sources.en: .*greater than or equal to 0"),
    ],
)
def test_a_mixture_that_cannot_be_is_one_line(corpus, mixture, complaint):  # noqa: F811
    with pytest.raises(ChuanError, match=complaint):
        recipe(corpus, "out", f"mixture={mixture}")


def test_a_damaged_shard_is_named(corpus, vocabulary):  # noqa: F811
    shards = build(corpus, "out", vocabulary) / "shards"
    victim = shards / "train-00001.tokens.npy"
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    with pytest.raises(ChuanError, match=r"train-00001.tokens.npy is damaged"):
        ShardReader(shards).verify()
    victim.write_bytes(data[:-2])
    with pytest.raises(ChuanError, match=r"train-00001.tokens.npy has"):
        ShardReader(shards)


def test_a_tokenizer_that_is_not_there_is_said_before_any_work(corpus, tmp_path):  # noqa: F811
    with pytest.raises(ChuanError, match="has no tokenizer"):
        build(corpus, "out", tmp_path / "none")
    assert not (corpus / "out").exists()
