import json

import pytest
import tokenizers
from tokenizers import pre_tokenizers

from chuan.errors import ChuanError
from chuan.tokenizer.byte_level import CONTROL, USER_DEFINED, build_byte_level_json, byte_of_character
from chuan.tokenizer.json_tokenizer import JsonTokenizer
from tests.support.texts import generate_texts
from tests.support.tiny_bpe import train_tiny_bpe


def test_the_alphabet_is_gpt2s():
    bytes_of = byte_of_character()
    assert set(bytes_of) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(bytes_of.values()) == list(range(256))
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for character in ("é", "川", "😀", " ", "\n", "a"):
        word = cut.pre_tokenize_str(character)[0][0]
        assert bytes(bytes_of[c] for c in word).decode() == character


@pytest.mark.parametrize("pre_tokenizer", ["gpt-2", "default", "smollm", "llama-bpe", "qwen2"])
def test_a_bare_vocabulary_gives_a_working_tokenizer(pre_tokenizer: str):
    description = train_tiny_bpe()
    vocabulary = description["model"]["vocab"]
    added = {token["content"]: token for token in description["added_tokens"]}
    ids = vocabulary | {name: token["id"] for name, token in added.items()}
    names = sorted(ids, key=lambda name: ids[name])
    kinds = [1 if name not in added else CONTROL if added[name]["special"] else USER_DEFINED for name in names]
    merges = [" ".join(merge) for merge in description["model"]["merges"]]
    tokenizer = JsonTokenizer(build_byte_level_json(names, kinds, merges, pre_tokenizer))
    oracle = tokenizers.Tokenizer.from_str(json.dumps(description))
    for text in generate_texts(500, seed=5):
        if pre_tokenizer != "qwen2":  # which composes characters first
            assert tokenizer.decode(tokenizer.encode(text)) == text
        if pre_tokenizer in ("gpt-2", "default"):
            assert tokenizer.encode(text) == oracle.encode(text).ids
    digits = tokenizer.encode("2026")
    assert tokenizer.decode(digits) == "2026"
    if pre_tokenizer in ("smollm", "qwen2"):
        assert len(digits) == 4


def test_an_unknown_way_of_cutting_is_one_line():
    with pytest.raises(ChuanError, match="pre-tokenizer 'tekken'"):
        build_byte_level_json(["a"], [1], [], "tekken")
