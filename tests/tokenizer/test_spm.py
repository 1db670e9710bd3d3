"""Id for id with the sentencepiece library: a tiny model always, the real 64,000 pieces where they are at hand."""

import contextlib
from pathlib import Path

import pytest
import sentencepiece

from chuan.errors import ChuanError
from chuan.tokenizer.spm import SentencePieceTokenizer, build_model_proto
from tests.support.texts import generate_texts
from tests.support.tiny_tokenizer import train_tiny_sentencepiece

REAL = Path(__file__).parents[2].parent / "shared" / "baichuan" / "tokenizer.model"
MODELS = ["tiny", "tiny without prefix", "real"]
COUNT = 34_000  # each: 100,000 strings in all


@pytest.fixture(scope="module", params=MODELS)
def model_file(request: pytest.FixtureRequest) -> bytes:
    return load_model_file(request.param)


def load_model_file(name: str) -> bytes:
    if name == "real":
        if not REAL.is_file():
            pytest.skip("the real vocabulary is not at hand")
        return REAL.read_bytes()
    return train_tiny_sentencepiece(dummy_prefix=name == "tiny")


def list_pieces(oracle: sentencepiece.SentencePieceProcessor) -> list[str]:
    return [oracle.id_to_piece(index) for index in range(oracle.get_piece_size())]


def test_everything_equals_the_library(model_file: bytes):
    """control=True: all texts, reserved pieces and `<s>` too. control=False: all texts without reserved pieces."""
    oracle = sentencepiece.SentencePieceProcessor(model_proto=model_file)
    tokenizer = SentencePieceTokenizer(model_file, (195, 196))
    pieces = list_pieces(oracle)
    reserved = [piece for piece in pieces if piece.startswith("<reserved_")]
    control_ids = set(tokenizer.control_pieces.values())
    texts = list(generate_texts(COUNT, seed=1, pieces=pieces, control=[*reserved, "<s>", "</s>", "<unk>"]))
    forged = 0
    for text, expected in zip(texts, oracle.encode(texts), strict=True):
        assert tokenizer.encode(text, control=True) == expected, repr(text)
        ids = tokenizer.encode(text)
        if control_ids.isdisjoint(expected):
            assert ids == expected, repr(text)
        else:
            forged += 1
            assert control_ids.isdisjoint(ids), repr(text)
            assert tokenizer.decode(ids) == text.replace("▁", " "), repr(text)  # the two are one to sentencepiece
        assert tokenizer.decode(expected) == oracle.decode(expected), repr(text)
    assert forged > COUNT / 10


def test_the_published_example():
    tokenizer = SentencePieceTokenizer(load_model_file("real"))
    assert tokenizer.encode("What is your name?") == [2276, 715, 879, 1868, 81]


def test_control_strings_are_the_characters_they_are(model_file: bytes):
    tokenizer = SentencePieceTokenizer(model_file, (195, 196))
    for name in tokenizer.control_pieces:
        ids = tokenizer.encode(f"a{name}b")
        assert set(tokenizer.control_pieces.values()).isdisjoint(ids)
        assert tokenizer.decode(ids) == f"a{name}b"


def test_role_ids_of_any_name_are_out_of_reach():
    model_file = train_tiny_sentencepiece(user_defined_symbols=tuple(f"<role_{i}>" for i in range(210)))
    tokenizer = SentencePieceTokenizer(model_file, (195, 196))
    name = next(name for name, index in tokenizer.control_pieces.items() if index == 195)
    assert name.startswith("<role_")
    assert 195 in tokenizer.encode(name, control=True)
    assert 195 not in tokenizer.encode(name)


@pytest.mark.parametrize("data", [b"", b"\x00", b"not a model at all", b"\xff" * 100])
def test_what_is_no_model_is_one_line(data: bytes):
    with pytest.raises(ChuanError, match="fetch it again") as info:
        SentencePieceTokenizer(data)
    assert "\n" not in str(info.value)


def test_a_cut_model_is_one_line_or_a_smaller_one():
    whole = train_tiny_sentencepiece()
    for keep in range(1, len(whole), len(whole) // 50):
        with contextlib.suppress(ChuanError):
            assert SentencePieceTokenizer(whole[:keep]).encode("a b")


def test_half_of_a_pair_and_foreign_ids_are_one_line():
    tokenizer = SentencePieceTokenizer(train_tiny_sentencepiece())
    with pytest.raises(ChuanError, match="UTF-16"):
        tokenizer.encode("a\ud800b")
    for bad in (-1, tokenizer.vocab_size, 10**12):
        with pytest.raises(ChuanError, match="outside the vocabulary"):
            tokenizer.decode([1, bad])


def test_a_vocabulary_alone_rebuilds_the_model(model_file: bytes):
    """As a GGUF carries it: pieces, scores, types."""
    proto = SentencePieceTokenizer(model_file).proto
    rebuilt = build_model_proto(
        [piece.piece for piece in proto.pieces],
        [piece.score for piece in proto.pieces],
        [piece.type for piece in proto.pieces],
        proto.normalizer_spec.add_dummy_prefix,
    )
    oracle = sentencepiece.SentencePieceProcessor(model_proto=model_file)
    tokenizer = SentencePieceTokenizer(rebuilt.SerializeToString())
    for text in generate_texts(2000, seed=2, pieces=list_pieces(oracle)):
        assert tokenizer.encode(text, control=True) == oracle.encode(text)
