"""Each option against transformers' own processors: the same distribution, by counting many draws."""

from collections import Counter

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from chuan.errors import ChuanError
from chuan.inference.sampling import Sampler, SamplingOptions, read_sampling_options

LOGITS = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -1.0, -3.0, 1.45])
DRAWS = 3000


def draw(options: SamplingOptions, prompt_ids=(0,)) -> Counter[int]:
    counts: Counter[int] = Counter()
    sampler = Sampler(options, prompt_ids, len(LOGITS), torch.device("cpu"))
    for _ in range(DRAWS):
        if sampler._seen is not None:  # each draw is a first one
            sampler = Sampler(
                options.replace(seed=options.seed + sum(counts.values())), prompt_ids, 8, torch.device("cpu")
            )
        counts[sampler.choose(LOGITS)] += 1
    return counts


@pytest.mark.parametrize(
    ("options", "processors"),
    [
        ({"temperature": 1.0}, []),
        ({"temperature": 0.5}, [TemperatureLogitsWarper(0.5)]),
        ({"temperature": 1.0, "top_k": 3}, [TopKLogitsWarper(3)]),
        ({"temperature": 1.0, "top_k": 1}, [TopKLogitsWarper(1)]),
        ({"temperature": 1.0, "top_p": 0.6}, [TopPLogitsWarper(0.6)]),
        ({"temperature": 1.0, "top_p": 1e-6}, [TopPLogitsWarper(1e-6)]),
        ({"temperature": 1.0, "min_p": 0.3}, [MinPLogitsWarper(0.3)]),
        ({"temperature": 1.0, "repetition_penalty": 2.0}, [RepetitionPenaltyLogitsProcessor(2.0)]),
        (
            {"temperature": 0.8, "top_k": 5, "top_p": 0.85, "repetition_penalty": 1.2},
            [
                RepetitionPenaltyLogitsProcessor(1.2),
                TemperatureLogitsWarper(0.8),
                TopKLogitsWarper(5),
                TopPLogitsWarper(0.85),
            ],
        ),
        (
            {"temperature": 2.0, "top_p": 0.9, "min_p": 0.2},
            [TemperatureLogitsWarper(2.0), TopPLogitsWarper(0.9), MinPLogitsWarper(0.2)],
        ),
    ],
)
def test_distributions_are_transformers(options: dict, processors: list):
    scores = LogitsProcessorList(processors)(torch.tensor([[0, 6]]), LOGITS[None].clone())
    expected = scores.softmax(dim=-1)[0]
    counts = draw(SamplingOptions(seed=1, **options), prompt_ids=(0, 6))
    assert set(counts) <= set(expected.nonzero().flatten().tolist())
    for token_id, probability in enumerate(expected.tolist()):
        deviation = 4.5 * (probability * (1 - probability) / DRAWS) ** 0.5 + 1e-9
        assert abs(counts[token_id] / DRAWS - probability) <= deviation, (token_id, counts, expected)


def test_greedy_with_a_penalty_forgets_nothing_it_chose():
    sampler = Sampler(SamplingOptions(repetition_penalty=10.0), [3], 8, torch.device("cpu"))
    assert [sampler.choose(LOGITS) for _ in range(4)] == [0, 1, 7, 2]


def test_a_seed_is_an_answer_and_none_is_another():
    def ids(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingOptions(temperature=1.0, seed=seed), [0], 8, torch.device("cpu"))
        return [sampler.choose(LOGITS) for _ in range(40)]

    assert ids(7) == ids(7)
    assert ids(7) != ids(8)
    assert ids(None) != ids(None)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": "warm"},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": 1.0},
        {"repetition_penalty": 0},
        {"max_new_tokens": 0},
        {"max_new_tokens": True},
        {"seed": "x"},
        {"seed": 2**70},
        {"stop": ("",)},
        {"stop": 3},
    ],
)
def test_bad_options_are_one_line(options: dict):
    with pytest.raises(ChuanError, match=next(iter(options))) as info:
        SamplingOptions().replace(**options)
    assert "\n" not in str(info.value)


def test_an_unknown_option_names_the_known():
    with pytest.raises(ChuanError, match="'temprature' is no sampling option; there are .*temperature"):
        SamplingOptions().replace(temprature=1)


def test_defaults_come_from_the_generation_config():
    published = {
        "do_sample": True,
        "temperature": 0.3,
        "top_k": 5,
        "top_p": 0.85,
        "repetition_penalty": 1.05,
        "max_new_tokens": 2048,
        "user_token_id": 195,
    }
    assert read_sampling_options(published) == SamplingOptions(0.3, 5, 0.85, 0.0, 1.05, None, 2048)
    assert read_sampling_options({}) == SamplingOptions()
    assert read_sampling_options({"temperature": 0.7}).temperature == 0  # without do_sample: greedy
    assert read_sampling_options({"do_sample": True}) == SamplingOptions(temperature=1.0, top_k=50)
    with pytest.raises(ChuanError, match=r"generation_config\.json: top_p"):
        read_sampling_options({"top_p": 7})


def test_nan_is_one_line():
    for options in (SamplingOptions(), SamplingOptions(temperature=1.0)):
        with pytest.raises(ChuanError, match="NaN"):
            Sampler(options, [0], 3, torch.device("cpu")).choose(torch.tensor([1.0, float("nan"), 2.0]))
