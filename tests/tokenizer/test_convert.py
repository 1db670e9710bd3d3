"""The made tokenizer.json, through the raw tokenizers library and through Chuan."""

import json

import pytest
import sentencepiece
import tokenizers

from chuan.errors import ChuanError
from chuan.tokenizer.json_tokenizer import JsonTokenizer
from chuan.tokenizer.spm import SentencePieceTokenizer
from tests.support.texts import generate_texts
from tests.support.tiny_tokenizer import train_tiny_sentencepiece
from tests.tokenizer.test_spm import COUNT, MODELS, list_pieces, load_model_file


@pytest.mark.parametrize("name", MODELS)
def test_raw_library_equals_sentencepiece(name: str):
    model_file = load_model_file(name)
    oracle = sentencepiece.SentencePieceProcessor(model_proto=model_file)
    made = tokenizers.Tokenizer.from_str(json.dumps(SentencePieceTokenizer(model_file).build_json()))
    pieces = list_pieces(oracle)
    control = [piece for piece in pieces if piece.startswith("<reserved_")] + ["<s>", "</s>", "<unk>", "<0x0A>"]
    texts = list(generate_texts(COUNT, seed=3, pieces=pieces, control=control))
    for text, expected, found in zip(texts, oracle.encode(texts), made.encode_batch(texts), strict=True):
        assert found.ids == expected, repr(text)


@pytest.mark.parametrize("name", MODELS)
def test_chuan_reads_it_as_it_reads_the_model(name: str):
    model_file = load_model_file(name)
    spm = SentencePieceTokenizer(model_file, (195, 196))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    made = JsonTokenizer(spm.build_json(), special, (195, 196))
    control = [*spm.control_pieces, "<0x0A>"]
    pieces = list_pieces(sentencepiece.SentencePieceProcessor(model_proto=model_file))
    for text in generate_texts(COUNT // 4, seed=4, pieces=pieces, control=control):
        assert made.encode(text) == spm.encode(text), repr(text)
        ids = spm.encode(text, control=True)
        assert made.encode(text, control=True) == ids, repr(text)
        assert made.decode(ids) == spm.decode(ids), repr(text)
    assert (made.bos_id, made.eos_id, made.vocab_size) == (spm.bos_id, spm.eos_id, spm.vocab_size)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("split_by_whitespace", [True, False])
def test_runs_where_the_order_of_splits_matters(seed: int, split_by_whitespace: bool):
    model_file = train_tiny_sentencepiece(seed=seed, split_by_whitespace=split_by_whitespace, vocab_size=700)
    oracle = sentencepiece.SentencePieceProcessor(model_proto=model_file)
    made = tokenizers.Tokenizer.from_str(json.dumps(SentencePieceTokenizer(model_file).build_json()))
    units, tails = ("a", " ", "ab", "aba", "aab"), ("", "b", "a ")
    texts = [unit * length + tail for unit in units for length in range(40) for tail in tails]
    for text in texts:
        assert made.encode(text).ids == oracle.encode(text), repr(text)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model_type": "unigram"}, "not BPE"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalizes"),
        ({"remove_extra_whitespaces": True}, "normalizes"),
        ({"treat_whitespace_as_suffix": True}, "spaces"),
    ],
)
def test_what_cannot_be_exact_is_refused(options: dict, reason: str):
    tokenizer = SentencePieceTokenizer(train_tiny_sentencepiece(**options))
    with pytest.raises(ChuanError, match=reason) as info:
        tokenizer.build_json()
    assert "\n" not in str(info.value)
