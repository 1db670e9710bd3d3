import pytest

from chuan.corpus.scrub import is_card_number, is_identity_number, scrub

ALL = ["email", "phone", "id", "ip", "card"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("写信给 li.lei+a@mail.gov.cn。", "写信给 <email>。"),
        ("邮箱li_lei@qq.com，谢谢", "邮箱<email>，谢谢"),
        ("电话13812345678。", "电话<phone>。"),
        ("call +86 138-1234-5678 now", "call <phone> now"),
        ("请拨打010-62345678咨询", "请拨打<phone>咨询"),
        ("Call (415) 555-2671 or 415-555-2671.", "Call <phone> or <phone>."),
        ("+44 20 7946 0958", "<phone>"),
        ("身份证号11010519491231002X。", "身份证号<id>。"),
        ("卡号 6222 0212 3456 7890 128", "卡号 6222 0212 3456 7890 128"),  # the last digit is wrong
        ("card 4111 1111 1111 1111 1", "card 4111 1111 1111 1111 1"),
        ("card 4539 1488 0343 6467.", "card <card>."),
        ("from 221.6.45.34, blocked; IP是123.89.46.72。", "from <ip>, blocked; IP是<ip>。"),
    ],
)
def test_personal_data_is_replaced(text, expected):
    assert scrub(text, ALL)[0] == expected


@pytest.mark.parametrize(
    "text",
    [
        "me@example.com is an example, and so is a@b.test; git@github.com:a/b.git, user@1000.service",
        "8.8.8.8 answers, section 7.3.5.2 and 207.5.2.1",
        "version 1.2.3.4 and 192.168.1.1, 127.0.0.1, 255.255.255.0, 10.0.0.1",
        "ISBN 978-7-111-12345-6, 2021-03-04 05:06, 1999-2003",
        "pi is 3.14159265358979, or 13812345678.5 and id_13812345678",
        "110105194912310021 has a wrong last digit",
        "0000 0000 0000 0000 and 1111111111111111",
        "https://a.b/13812345678/x?p=13812345678",
        "@decorator and user@host",
    ],
)
def test_what_only_looks_like_it_stays(text):
    assert scrub(text, ALL) == (text, {})


def test_only_the_kinds_that_are_named_go_and_are_counted():
    text = "a@mail.cn, b@mail.cn, 13812345678"
    assert scrub(text, ["email"]) == ("<email>, <email>, 13812345678", {"email": 2})
    assert scrub(text, []) == (text, {})


def test_checksums():
    assert is_identity_number("11010519491231002X")
    assert not is_identity_number("110105194912310029")
    assert is_card_number("4539 1488 0343 6467")
    assert not is_card_number("4539 1488 0343 6468")
