import json
import random

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from chuan.tokenizer.json_tokenizer import JsonTokenizer
from chuan.tokenizer.spm import SentencePieceTokenizer
from chuan.tokenizer.streaming import StopStrings
from chuan.tokenizer.tokenizer import Tokenizer
from tests.support.texts import generate_texts
from tests.support.tiny_bpe import train_tiny_bpe
from tests.tokenizer.test_spm import load_model_file


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = tokenizer.stream()
    return [decoder.push(token_id) for token_id in ids] + [decoder.flush()]


@pytest.mark.parametrize("name", ["tiny", "tiny without prefix", "real"])
def test_random_ids_concatenate_to_sentencepieces_decode(name: str):
    """Byte pieces in any order, broken characters, control ids, an unknown at the start."""
    model_file = load_model_file(name)
    tokenizer, oracle = SentencePieceTokenizer(model_file), sentencepiece.SentencePieceProcessor(model_proto=model_file)
    rng = random.Random(0)
    byte_ids = [index for index in range(oracle.get_piece_size()) if oracle.is_byte(index)]
    for _ in range(4000):
        pool = rng.choice([byte_ids, range(oracle.get_piece_size()), [0, 1, 2, *byte_ids]])
        ids = [rng.choice(pool) for _ in range(rng.randint(0, 12))]
        expected = oracle.decode(ids)
        assert "".join(stream(tokenizer, ids)) == expected == tokenizer.decode(ids), ids


def test_random_ids_concatenate_to_the_byte_level_decode():
    description = train_tiny_bpe()
    tokenizer, oracle = JsonTokenizer(description), tokenizers.Tokenizer.from_str(json.dumps(description))
    rng = random.Random(0)
    for _ in range(4000):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(rng.randint(0, 12))]
        expected = oracle.decode(ids, skip_special_tokens=True)
        assert "".join(stream(tokenizer, ids)) == expected == tokenizer.decode(ids), ids


@pytest.mark.parametrize("name", ["tiny", "byte level"])
def test_only_whole_characters_leave_and_every_split_agrees(name: str):
    if name == "tiny":
        tokenizer: Tokenizer = SentencePieceTokenizer(load_model_file(name))
    else:
        tokenizer = JsonTokenizer(train_tiny_bpe())
    for text in generate_texts(1500, seed=7):
        ids = tokenizer.encode(text)
        pieces = stream(tokenizer, ids)
        assert "\ufffd" not in "".join(pieces)
        whole = tokenizer.decode(ids)
        assert whole == (text.replace("▁", " ") if name == "tiny" else text)
        for cut in range(len(ids) + 1):
            assert whole.startswith("".join(pieces[:cut]))


@settings(max_examples=300, deadline=None)
@given(st.text("abc", max_size=40), st.lists(st.text("abc", min_size=1, max_size=5), max_size=3), st.data())
def test_stop_strings_cut_at_the_first_wherever_the_text_is_split(text: str, stops: list[str], data: st.DataObject):
    found = [index for stop in stops if (index := text.find(stop)) >= 0]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    checker, out = StopStrings(stops), ""
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        out += checker.push(text[start:end])
        assert all(stop not in out for stop in stops)
    out += checker.flush()
    # Read as it comes, the stop that is complete first ends the text, even where a longer one began before it.
    if found:
        assert checker.stopped
        assert text.startswith(out)
        assert any(text[len(out) :].startswith(stop) for stop in stops)
    else:
        assert out == text


def test_a_stop_string_that_begins_inside_a_token():
    checker = StopStrings(["\nUser:"])
    assert checker.push("Paris.\nUs") == "Paris."
    assert checker.push("er: more") == ""
    assert checker.stopped
    assert checker.push("more") == checker.flush() == ""
