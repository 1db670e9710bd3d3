import pytest

from chuan.corpus.offensive import OffensiveSettings, count_offensive, is_offensive

SETTINGS = OffensiveSettings(enabled=True)


@pytest.mark.parametrize(
    ("language", "text", "hits"),
    [
        ("en", "What the FUCK, you bitch, eat shit", 3),
        ("en", "Scunthorpe, cockpit, assessment, shiitake, class, retardant, a cock crows", 0),
        ("zh", "他妈的，你这个傻逼，婊子", 3),
        ("zh", "他妈的手艺很好。操你的心。日本人爱艺术，贱卖货物", 1),
    ],
)
def test_words_are_counted(language, text, hits):
    assert count_offensive(text, language) == hits


def test_a_few_words_in_a_long_text_do_not_count():
    assert is_offensive("fuck this shit, you bitch", "en", SETTINGS)
    assert not is_offensive("fuck this shit, you bitch " + "and then they went home " * 400, "en", SETTINGS)
    assert not is_offensive("fuck", "en", SETTINGS)
    assert is_offensive("他妈的傻逼婊子", "zh", SETTINGS)
