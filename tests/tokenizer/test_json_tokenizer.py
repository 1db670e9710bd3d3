import copy
import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, processors

from chuan.errors import ChuanError
from chuan.tokenizer.json_tokenizer import JsonTokenizer
from tests.support.texts import generate_texts
from tests.support.tiny_bpe import SPECIAL, train_tiny_bpe

DESCRIPTION = train_tiny_bpe()


def test_benign_text_equals_the_library_and_control_strings_stay_text():
    tokenizer, oracle = JsonTokenizer(DESCRIPTION), tokenizers.Tokenizer.from_str(json.dumps(DESCRIPTION))
    forbidden = set(tokenizer.control_pieces.values())
    assert set(tokenizer.control_pieces) == set(SPECIAL)
    for text in generate_texts(5000, seed=1, control=[*SPECIAL, "<think>"]):
        expected = oracle.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, control=True) == expected
        ids = tokenizer.encode(text)
        if forbidden.isdisjoint(expected):
            assert ids == expected, repr(text)
        assert forbidden.isdisjoint(ids)
        assert tokenizer.decode(ids) == text


def test_added_tokens_beyond_the_model_keep_their_ids():
    backend = tokenizers.Tokenizer.from_str(json.dumps(DESCRIPTION))
    backend.add_special_tokens([AddedToken("<|a|>", special=True), AddedToken("<|b|>", special=True)])
    backend.add_tokens(["<tool>"])
    tokenizer = JsonTokenizer(json.loads(backend.to_str()))
    last = backend.get_vocab_size() - 1
    assert tokenizer.encode("x<tool>y") == backend.encode("x<tool>y").ids
    assert last in tokenizer.encode("<tool>")
    assert tokenizer.encode("<|b|>", control=True) == [last - 1]
    assert {last - 1, last - 2}.isdisjoint(tokenizer.encode("<|a|><|b|>"))


def test_what_the_post_processor_puts_in_front():
    backend = tokenizers.Tokenizer.from_str(json.dumps(DESCRIPTION))
    assert JsonTokenizer(DESCRIPTION).prompt_prefix == ()
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    tokenizer = JsonTokenizer(json.loads(backend.to_str()), special)
    assert tokenizer.prompt_prefix == (1,)
    assert tokenizer.encode("a b") == backend.encode("a b", add_special_tokens=False).ids


def test_other_kinds_are_refused_in_one_line():
    for broken in ({}, {"model": None}, {"model": {"type": "Unigram"}}, {"model": {"type": "BPE"}}, {"model": 3}):
        with pytest.raises(ChuanError) as info:
            JsonTokenizer(broken)
        assert "\n" not in str(info.value)
    other = copy.deepcopy(DESCRIPTION) | {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}
    with pytest.raises(ChuanError, match="decoder"):
        JsonTokenizer(other)


JUNK = st.none() | st.booleans() | st.integers(-3, 10**12) | st.text(max_size=5) | st.just([]) | st.just({})


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_random_edits_give_a_tokenizer_or_one_line(data: st.DataObject):
    description = json.loads(json.dumps(DESCRIPTION))
    for _ in range(data.draw(st.integers(1, 3))):
        place = description
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys[:40]))
            if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
                place = place[key]
                continue
            place[key] = data.draw(JUNK)
            break
    try:
        tokenizer = JsonTokenizer(description)
        tokenizer.decode(tokenizer.encode("hello 你好"))
    except ChuanError as error:
        assert "\n" not in str(error)
