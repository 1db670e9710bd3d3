import pytest

from chuan.corpus.language import LanguageDetector

CODE = (
    "```python\nfor item in range(10):\n    print(item)\n    if item > 5:\n        break\n    result = go(item)\n```\n"
)
TEXTS = {
    "zh": [
        "今天天气很好，我们一起去公园散步吧。",
        "漢語的發展與歷史，頭髮與發展。",
        f"这是一个循环的例子，我们在下面逐行解释它。\n{CODE * 3}",
        "《君の名は。》（君の名は）是新海诚导演的动画电影，讲述了两个高中生互换身体的故事，在中国大陆上映后大受欢迎。",
        "使用 Docker Compose 部署 Redis 和 MySQL 的方法如下所示，请先安装 Docker。",
        "设函数$f(x)=\\left\\{\\begin{array}{ll}1+\\log _{2}(2-x), & x<1\\end{array}\\right.$,则$f(-2)=$",
    ],
    "en": [
        "The quick brown fox jumps over the lazy dog and then it sleeps.",
        "Hello, how have you been?",
        "Hello?\nHi!",
        f"Here is how a loop is written in that language:\n{CODE * 3}",
        "Confucius (孔子) was a Chinese philosopher of the Spring and Autumn period who is considered a sage.",
    ],
    "ja": ["今日はとても天気がいいので、公園を散歩しましょう。"],
    "ko": ["오늘은 날씨가 아주 좋아서 공원에서 산책합시다. 漢字"],
    "fr": ["Le chat est assis sur la table et regarde par la fenêtre pendant toute la journée."],
    "de": ["Der schnelle braune Fuchs springt über den faulen Hund und schläft danach ein."],
    "ru": ["Сегодня очень хорошая погода, давайте погуляем в парке."],
    "und": ["1234 5678 ....", ""],
}


@pytest.mark.parametrize(
    ("language", "text"), [(language, text) for language, texts in TEXTS.items() for text in texts]
)
def test_languages(language, text):
    found, score = LanguageDetector().detect(text)
    assert found == language
    assert 0 <= score <= 1
