"""A conversation as it is trained on: what is learned, and what is only read.

In: an encoded conversation. Out: colours on a terminal; brackets around what is learned where the text is piped.
"""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from chuan.tokenizer.tokenizer import Tokenizer
from chuan.training.lessons import Encoded
from chuan.training.rows import IGNORED

_LEARNED, _READ, _CONTROL = "bold green", "dim", "cyan"


def print_lesson(title: str, encoded: Encoded, tokenizer: Tokenizer) -> None:
    """The title with its counts, then the text; control pieces are written out."""
    console = Console(highlight=False)
    counts = f"{len(encoded.tokens)} tokens, {encoded.target_count} learned"
    if encoded.cut:
        counts += f", {encoded.cut} cut off"
    console.print(Text(f"{title}: {counts}", style="bold"), soft_wrap=True)
    console.print(render_lesson(encoded, tokenizer, brackets=not console.is_terminal), soft_wrap=True)
    console.print()


def render_lesson(encoded: Encoded, tokenizer: Tokenizer, brackets: bool) -> Text:
    """Runs of ids that are learned, or read, or are control ids, each in its style. A target that is not the next id
    (the eos that ends a turn of Baichuan's) stands where it is predicted."""
    names = {index: piece for piece, index in tokenizer.control_pieces.items()}
    entries: list[tuple[int, bool]] = []
    expected = IGNORED
    for token, target in zip(encoded.tokens.tolist(), encoded.targets.tolist(), strict=True):
        if expected not in (IGNORED, token):
            entries.append((expected, True))
        entries.append((token, expected == token))
        expected = target
    if expected != IGNORED:
        entries.append((expected, True))
    text = Text()
    start = 0
    for place in range(1, len(entries) + 1):
        if place < len(entries) and entries[place][1] == entries[start][1]:
            continue
        learned = entries[start][1]
        if learned and brackets:
            text.append("⟦")
        _append(text, [token for token, _ in entries[start:place]], names, tokenizer, _LEARNED if learned else _READ)
        if learned and brackets:
            text.append("⟧")
        start = place
    return text


def _append(text: Text, ids: list[int], names: dict[int, str], tokenizer: Tokenizer, style: str) -> None:
    plain: list[int] = []
    for token in [*ids, None]:
        if token is not None and token not in names:
            plain.append(token)
            continue
        text.append(tokenizer.decode(plain), style)
        plain = []
        if token is not None:
            text.append(names[token], f"{style} {_CONTROL}")
