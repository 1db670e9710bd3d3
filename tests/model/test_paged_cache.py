"""A ragged batch on shared pages equals each sequence by itself, through one plain attention over all of its keys."""

import pytest
import torch

from chuan.model.attention import attend
from chuan.model.paged_cache import PagedCache, Span
from tests.support.tiny import build_tiny_config

PAGE, HEADS, KEYS, WIDTH = 4, 4, 2, 12
CONFIG = build_tiny_config(num_key_value_heads=KEYS, num_hidden_layers=1)

# Pages of the prefix, pages of its own, and new tokens, of each sequence: shared by all, by two groups, by none, out of
# order, and a sequence of one token.
CASES = {
    "one group": [([0, 1, 2], [3], 3), ([0, 1, 2], [4, 5], 6), ([0, 1, 2], [6], 1)],
    "two groups": [([0, 1], [2], 2), ([0, 1], [3], 4), ([7, 5], [4], 3), ([7, 5], [6], 2)],
    "a part is shared": [([0, 1, 2], [3], 3), ([0, 1, 9], [4], 3)],
    "nobody shares": [([0], [1], 2), ([2], [3], 4), ([5], [4], 1)],
}


def draw(tokens: int, heads: int) -> torch.Tensor:
    return torch.randn(1, heads, tokens, WIDTH)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_sequences_on_shared_pages_see_what_they_would_see_alone(name, dtype, tolerance):
    torch.manual_seed(0)
    cache = PagedCache(CONFIG, 10, PAGE, dtype, torch.device("cpu"))
    stored: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for pages, _, _ in CASES[name]:  # fill the prefixes, page by page
        for place, page in enumerate(pages):
            if page in stored:
                continue
            keys, values = draw(PAGE, KEYS).to(dtype), draw(PAGE, KEYS).to(dtype)
            cache.begin([Span(place * PAGE, PAGE, pages)])
            cache.attend(0, draw(PAGE, HEADS).to(dtype), keys, values, None)
            stored[page] = keys, values
    spans = [Span(len(pages) * PAGE, tokens, [*pages, *own]) for pages, own, tokens in CASES[name]]
    total = sum(span.tokens for span in spans)
    queries, keys, values = (draw(total, heads).to(dtype) for heads in (HEADS, KEYS, KEYS))
    cache.begin(spans)
    found = cache.attend(0, queries, keys, values, None)
    row = 0
    for (pages, _, tokens), _ in zip(CASES[name], spans, strict=True):
        mine = slice(row, row + tokens)
        all_keys = torch.cat([stored[page][0] for page in pages] + [keys[:, :, mine]], dim=2).float()
        all_values = torch.cat([stored[page][1] for page in pages] + [values[:, :, mine]], dim=2).float()
        expected = attend(queries[:, :, mine].float(), all_keys, all_values, None)
        torch.testing.assert_close(found[:, :, mine].float(), expected, rtol=tolerance, atol=tolerance)
        row += tokens
