import pytest

from chuan.corpus.boilerplate import drop_boilerplate


@pytest.mark.parametrize(
    ("language", "line"),
    [
        ("en", "This website uses cookies to give you the best experience."),
        ("en", "© 2019 The Company. All rights reserved."),
        ("en", "Please enable JavaScript to view this page."),
        ("en", "Share this on Facebook"),
        ("zh", "版权所有，未经授权不得转载。"),
        ("zh", "京ICP备12345678号"),
        ("zh", "扫码关注我们的公众号"),
        ("zh", "上一篇：春天的故事"),
        ("zh", "责任编辑：张三"),
    ],
)
def test_short_paragraphs_go_whole(language, line):
    text = {"en": "A story.", "zh": "一个故事。"}[language]
    assert drop_boilerplate(f"{text}\n{line}\n{text}", language) == (f"{text}\n{text}", 1)


def test_of_a_long_paragraph_the_sentence_goes():
    story = "The monk dug for nine years, and when the water came at last he had already left for the north again. " * 2
    assert drop_boilerplate(f"{story}Read our cookie policy. It rained.", "en") == (f"{story}It rained.", 1)
    story = "老和尚挖了九年，水终于来的时候，他已经离开了这个村子，往北方去了，再也没有人见过他。" * 2
    assert drop_boilerplate(f"{story}长按扫描二维码关注我们！后来下雨了。", "zh") == (f"{story}后来下雨了。", 1)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "JavaScript is a language. A cookie is a small file, and cookies are eaten too."),
        ("zh", "他很关注公共的号码。来源不明的水。下一篇文章更好。"),
        ("en", "```\n# all rights reserved\n```"),
    ],
)
def test_text_about_the_same_things_stays(language, text):
    assert drop_boilerplate(text, language) == (text, 0)
