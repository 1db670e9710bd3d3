"""A tokenizer trained by a recipe: its files agree, its ids stand where the models have them, and no text is lost."""

import json
import random
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer

from chuan.corpus.tokenizer_training import TokenizerRecipe, train_tokenizer
from chuan.errors import ChuanError
from chuan.recipes import load_recipe
from chuan.tokenizer.folder import load_tokenizer
from tests.support.planted import Writer

PIECES = 1500
TEXTS = [
    "你好，世界！2023年10月",
    "The river runs  to the sea; 1,024 miles.",
    "def f(x):\n    return x + 1\n",
    "🌊 ﬁ é\u3000x",
    "",
]
RECIPE = f"""
output = "out"
[[sources]]
name = "made"
path = "*.jsonl"
[tokenizer]
vocab_size = {PIECES}
character_coverage = 0.98
"""


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for seed, language in enumerate(("zh", "en")):
        writer = Writer(language, seed)
        lines = [json.dumps({"text": writer.write(120)}) for _ in range(150)]
        (folder / f"{language}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    return folder


def recipe(texts: Path, output: Path, *overrides: str) -> TokenizerRecipe:
    return load_recipe(texts / "recipe.toml", TokenizerRecipe, [f"data={texts}", f"output={output}", *overrides])


@pytest.fixture(scope="module")
def folder(texts: Path) -> Path:
    train_tokenizer(recipe(texts, texts / "trained"))
    return texts / "trained"


def test_all_readers_give_the_same_ids(folder):
    ours = load_tokenizer(folder)
    library = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    transformers = AutoTokenizer.from_pretrained(folder)
    assert ours.vocab_size == PIECES
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == library.encode(text) == transformers(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(ids) == text
    assert ours.encode_batch(TEXTS, threads=2) == [ours.encode(text) for text in TEXTS]


def test_ids_stand_where_the_models_have_them(folder):
    ours = load_tokenizer(folder)
    library = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert [library.id_to_piece(i) for i in (0, 1, 2)] == ["<unk>", "<s>", "</s>"]
    role = library.id_to_piece(195)
    assert role.startswith("<reserved_")
    assert library.encode(role) == [195]
    assert 195 not in ours.encode(role)  # a role is placed by code, never by text
    assert len(ours.encode("20231024")) == 8


@pytest.mark.parametrize("count", [3_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_no_text_is_lost(folder, count):
    ours, rng = load_tokenizer(folder), random.Random(7)
    ranges = [(0, 0x7F), (0x20, 0x7F), (0xA0, 0x2580), (0x2582, 0xD7FF), (0x4E00, 0x9FFF), (0xE000, 0x10FFFF)]
    for _ in range(count):
        text = "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(0, 30)))
        assert ours.decode(ours.encode(text)) == text


def test_the_same_texts_give_the_same_bytes(texts, folder):
    train_tokenizer(recipe(texts, texts / "again", "tokenizer.threads=1"))
    for name in ("tokenizer.model", "tokenizer.json"):
        assert (texts / "again" / name).read_bytes() == (folder / name).read_bytes()
    figures = json.loads((folder / "compression.json").read_text(encoding="utf-8"))
    assert figures["documents"] == 300
    assert 0 < figures["held_out_documents"] < 30


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["tokenizer.vocab_size=200000"], "200,?000|too few|at most"),
        (["tokenizer.reserved=3"], "195"),
        (["sources=[{name='a', path='none.jsonl'}]"], "none.jsonl"),
        (["tokenizer.vocabulary=9"], "no key"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_nothing(texts, tmp_path, overrides, complaint):
    with pytest.raises(ChuanError, match=complaint) as caught:
        train_tokenizer(recipe(texts, tmp_path / "out", *overrides))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_taken_stays_as_it_is(texts, folder):
    before = (folder / "tokenizer.model").read_bytes()
    with pytest.raises(ChuanError, match="is there already"):
        train_tokenizer(recipe(texts, folder))
    assert (folder / "tokenizer.model").read_bytes() == before
