"""What of a text counts when questions are looked for: marks of options do not, people called 甲 and 乙 do."""

import pytest

from chuan.corpus.benchmark_index import split_plain_tokens


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("其中甲、乙两球带电", "其 中  甲、乙  两  球  带  电"),
        ("下列正确的是 A. 河流 B. 桥梁", "下列正确的是（1）河流（2）桥梁"),
        ("Which is it? A. river B. bridge", "which is it\n① River\n② bridge"),
        ("甲）河流", "乙） 河流"),
    ],
)
def test_spacing_and_marks_do_not_count(one, other):
    assert split_plain_tokens(one) == split_plain_tokens(other)


def test_numbers_do():
    assert split_plain_tokens("3、5、8") != split_plain_tokens("3、5、9")
    assert split_plain_tokens("甲、乙") == ["甲", "乙"]
