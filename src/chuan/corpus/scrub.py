"""Personal data in a text, replaced by what kind it was: `<email>`, `<phone>`, `<id>`, `<ip>`, `<card>`.

In: a text. Out: the text without them, and how many of each there were. Numbers with a checksum (Chinese identity
numbers, bank cards) are replaced only where it holds. Names and addresses are not looked for.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Literal

from pydantic import Field

from chuan.recipes import Settings

Kind = Literal["email", "phone", "id", "ip", "card"]
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9_.+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}(?![A-Za-z0-9_-])"
)
# Reserved for examples (RFC 2606), addresses of repositories, units of systemd.
_NOBODY = re.compile(r"@(?:[\w-]+\.)*(?:example|test|localhost|invalid)(?:\.\w+)?$|^git@|@\d+\.service$", re.IGNORECASE)
# Not in the middle of a longer number, an identifier, a decimal or the path of an address.
# Chinese characters may touch it: 电话13800138000。
_START = r"(?<![A-Za-z0-9_.\-/=#])"
_END = r"(?![A-Za-z0-9_\-/]|\.\d)"
_IDENTITY = re.compile(_START + r"[1-9]\d{5}(?:18|19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx]" + _END)
_CARD = re.compile(_START + r"(?:62|[3-6]\d)\d{2}(?:[ -]?\d{4}){2}(?:[ -]?\d{1,7})" + _END)
_MOBILE = re.compile(_START + r"(?:(?:\+|00)?86[- ]?)?1[3-9]\d(?:\d{8}|([- ])\d{4}\1\d{4})" + _END)
_LANDLINE = re.compile(_START + r"\(?0(?:10|2\d|[3-9]\d{2})\)?-[2-8]\d{6,7}" + _END)
_FOREIGN = re.compile(
    r"(?<![A-Za-z0-9_.\-/=#:(+])(?:\+[1-9]\d{0,2}[ -.](?:\(\d{1,4}\)[ -]?)?\d{2,4}(?:[ -.]\d{2,4}){1,3}"
    r"|\([2-9]\d{2}\) ?[2-9]\d{2}-\d{4}|(?:1-)?[2-9]\d{2}-[2-9]\d{2}-\d{4})" + _END
)
_IP = re.compile(r"(?<![A-Za-z0-9_.\-])(?:\d{1,3}\.){3}\d{1,3}(?![A-Za-z0-9_\-]|\.\d)")
_VERSION_BEFORE = re.compile(r"(?:version|release|ver|v|版本|版)[\s:：.]*$", re.IGNORECASE)
_DOTTED = re.compile(r"\d\.\d{1,3}\.\d")
_LONG_NUMBER = re.compile(r"\d[\d \-.()]{6,}\d")
_IDENTITY_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)  # GB 11643-1999


class ScrubSettings(Settings):
    """Which kinds of personal data are replaced; none, unless the recipe names some."""

    kinds: list[Kind] = Field(default=[])


def scrub(text: str, kinds: list[Kind]) -> tuple[str, dict[str, int]]:
    """The text with placeholders, and how many of each kind it had."""
    found: dict[str, int] = {}

    def replace(kind: Kind, pattern: re.Pattern[str], is_real: Callable[[re.Match[str]], bool]) -> None:
        nonlocal text

        def placeholder(match: re.Match[str]) -> str:
            if not is_real(match):
                return match[0]
            found[kind] = found.get(kind, 0) + 1
            return f"<{kind}>"

        text = pattern.sub(placeholder, text)

    if "email" in kinds and "@" in text:
        replace("email", _EMAIL, lambda match: not _NOBODY.search(match[0]))
    if "ip" in kinds and _DOTTED.search(text):
        replace("ip", _IP, _is_public_address)
    if _LONG_NUMBER.search(text):
        if "id" in kinds:
            replace("id", _IDENTITY, lambda match: is_identity_number(match[0]))
        if "card" in kinds:
            replace("card", _CARD, lambda match: is_card_number(match[0]))
        if "phone" in kinds:
            for pattern in (_MOBILE, _LANDLINE, _FOREIGN):
                replace("phone", pattern, lambda match: True)
    return text, found


def is_identity_number(number: str) -> bool:
    """Whether the last place of a Chinese identity number is right (GB 11643-1999, ISO 7064 MOD 11-2)."""
    total = sum(weight * int(digit) for weight, digit in zip(_IDENTITY_WEIGHTS, number[:17], strict=True))
    return "10X98765432"[total % 11] == number[17].upper()


def is_card_number(number: str) -> bool:
    """Whether a number of 13 to 19 digits ends in the digit of Luhn (ISO/IEC 7812-1)."""
    digits = [int(digit) for digit in number if digit.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) < 4:
        return False
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_public_address(match: re.Match[str]) -> bool:
    """Addresses of a home or an example, netmasks and the numbers of versions and sections are nobody's."""
    try:
        address = ipaddress.IPv4Address(match[0])
    except ValueError:
        return False
    # With less than eight digits it is mostly a section of a law or a version: 7.3.5.2.
    if not address.is_global or address.is_multicast or len(match[0]) < 11:
        return False
    return not _VERSION_BEFORE.search(match.string[max(0, match.start() - 12) : match.start()])
