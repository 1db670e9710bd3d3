"""The search for a mixture: what the proxies measure, what the regression finds, and a search that goes on."""

import math
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from chuan.corpus.shards import ShardReader
from chuan.errors import ChuanError
from chuan.json_file import read_json
from chuan.recipes import load_recipe
from chuan.tokenizer.folder import load_tokenizer
from chuan.training.mixture import Fit, MixtureRecipe, assign_groups, choose_best, find_mixture, fit_losses, limit
from chuan.training.proxy import ProxySettings, build_batches, measure, read_pool, train_proxy
from tests.corpus.test_build import corpus  # noqa: F401 (a fixture)
from tests.corpus.test_tokenise import build, vocabulary  # noqa: F401 (a fixture)

PROXY = ProxySettings(vocabulary=64, width=32, layers=1, context=16, rows=8, steps=12, held_out=100_000)


@pytest.fixture
def search(corpus, vocabulary) -> MixtureRecipe:  # noqa: F811
    shards = build(corpus, "built", vocabulary) / "shards"
    target = {"zh": 1.0}
    return MixtureRecipe(
        output=str(corpus / "mix"), shards=str(shards), tokenizer=str(vocabulary), target=target, proxies=8, proxy=PROXY
    )


def test_bits_per_byte_are_of_the_whole_text(search):
    """An oracle: the same code length, document by document, from the definition."""
    reader, validation = ShardReader(search.shards), ShardReader(search.shards, "validation")
    tokenizer = load_tokenizer(search.tokenizer)
    pool = read_pool(reader, validation, tokenizer, assign_groups({}, reader.manifest), PROXY)
    model = train_proxy(pool, {"zh": 0.5, "en": 0.5}, PROXY, seed=0)
    found = measure(model, pool, PROXY)
    for name in ("zh", "en"):
        numbers = [n for n in range(len(validation)) if validation.describe(n).source == name]
        texts = [
            tokenizer.decode(validation.document(n)[:-1].tolist())
            for n in numbers
            if validation.describe(n).hash % 2 == 0
        ]
        assert pool.held_out[name].size == sum(len(text.encode()) for text in texts)
        rows = pool.held_out[name].rows
        kept = rows[:, 1:] >= 0
        log_p = torch.log_softmax(model(rows[:, :-1].clamp(min=0)), -1)
        nats = -log_p.gather(2, rows[:, 1:].clamp(min=0)[..., None])[..., 0][kept].sum().item()
        assert found[name] == pytest.approx((nats + pool.held_out[name].extra) / math.log(2) / pool.held_out[name].size)
        assert pool.held_out[name].extra > 0  # the proxy tells 63 pieces apart
        assert 0 < found[name] < 20


def test_more_of_a_group_is_better_for_it(search):
    reader, validation = ShardReader(search.shards), ShardReader(search.shards, "validation")
    groups = assign_groups({}, reader.manifest)
    pool = read_pool(reader, validation, load_tokenizer(search.tokenizer), groups, PROXY)
    zh, en = (
        measure(train_proxy(pool, {"zh": share, "en": 1 - share}, PROXY, seed=0), pool, PROXY) for share in (0.9, 0.1)
    )
    assert zh["zh"] < en["zh"]
    assert en["en"] < zh["en"]


def test_every_step_holds_each_group_in_its_share():
    train = {name: torch.full((50, 17), number) for number, name in enumerate("abc")}
    train["b"] = train["b"] + torch.arange(50)[:, None] * 10
    batches = build_batches(train, {"a": 0.5, "b": 0.37, "c": 0.13}, PROXY, seed=0)
    groups = torch.stack(batches)[:, :, 0] % 10
    assert groups.shape == (PROXY.steps, PROXY.rows)
    for group, share in enumerate((0.5, 0.37, 0.13)):
        counts = (groups == group).sum(1)
        assert counts.sum() == round(share * PROXY.steps * PROXY.rows)
        assert (counts - share * PROXY.rows).abs().max() <= 1
    rows = torch.cat(batches)[:, 0]
    less = torch.cat(build_batches(train, {"a": 0.6, "b": 0.27, "c": 0.13}, PROXY, seed=0))[:, 0]
    of_b = less[less % 10 == 1]
    assert len(of_b.unique()) == len(of_b)  # none twice before each once
    assert torch.equal(rows[rows % 10 == 1][: len(of_b)], of_b)  # one order, whatever the shares


def test_a_search_goes_on_and_its_result_is_a_recipe(search):
    first = find_mixture(search)
    weights = tomllib.loads(Path(search.output, "mixture.toml").read_text())["mixture"]["sources"]
    assert weights["zh"] > weights["en"]  # the target is zh alone
    assert sum(row["found"] for row in first["groups"].values()) == pytest.approx(1)
    proxies = sorted(Path(search.output, "proxies").glob("*.json"))
    assert len(proxies) == 8
    stamps = [path.stat().st_mtime_ns for path in proxies]
    proxies[3].unlink()
    assert find_mixture(search) == first
    again = [path.stat().st_mtime_ns for path in proxies]
    assert [a == b for a, b in zip(stamps, again, strict=True)] == [number != 3 for number in range(8)]
    more = find_mixture(search.model_copy(update={"proxies": 9}))
    assert [path.stat().st_mtime_ns for path in proxies] == again
    assert more["measured"]["natural"] == first["measured"]["natural"]
    with pytest.raises(ChuanError, match="holds the search of another recipe"):
        find_mixture(search.model_copy(update={"seed": 1}))
    assert read_json(Path(search.output, "report.json")) == more


def test_the_recipe_in_the_repository_reads():
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "mixture-mini.toml", MixtureRecipe)
    assert recipe.groups.keys() == recipe.target.keys()


def test_the_fit_finds_a_law_and_says_when_there_is_none():
    random = np.random.default_rng(0)
    mixtures = random.dirichlet(np.ones(3), 40)
    losses = 3 - np.sqrt(mixtures) @ [0.5, 0.2, 0.0]
    fit = fit_losses(mixtures, losses + random.normal(0, 0.001, 40))
    assert fit.rank_correlation > 0.98
    assert np.abs(fit.predict(mixtures) - losses).max() < 0.02
    assert fit_losses(mixtures, random.normal(size=40)).rank_correlation < 0.6


def test_left_out_errors_are_those_of_fits_without_the_proxy():
    random = np.random.default_rng(1)
    mixtures, losses = random.dirichlet(np.ones(3), 12), random.normal(size=12)
    others = ~np.eye(12, dtype=bool)
    errors = [
        losses[i] - Fit(mixtures[o], losses[o], 0.1).predict(mixtures[i : i + 1])[0] for i, o in enumerate(others)
    ]
    assert Fit(mixtures, losses, 0.1).left_out_error == pytest.approx(np.sqrt(np.mean(np.square(errors))))


def test_errors_of_gains_are_those_of_repeated_searches():
    """An oracle: many searches whose proxies differ in noise alone."""
    random = np.random.default_rng(2)
    mixtures = random.dirichlet(np.full(3, 3.0), 400)
    others = random.dirichlet(np.full(3, 3.0), 5)
    losses = 3 - np.sqrt(mixtures) @ [0.5, 0.2, 0.0]
    fits = [Fit(mixtures, losses + random.normal(0, 0.01, 400), 1e-6) for _ in range(200)]
    gains = np.stack([fit.compare(others, mixtures[0])[0] for fit in fits])
    assert gains.std(0) == pytest.approx(fits[0].compare(others, mixtures[0])[1], rel=0.25)
    truth = np.sqrt(others) @ [0.5, 0.2, 0.0] - np.sqrt(mixtures[0]) @ [0.5, 0.2, 0.0]
    assert gains.mean(0) == pytest.approx(truth, abs=0.002)
    assert [part.item() for part in fits[0].compare(mixtures[:1], mixtures[0])] == pytest.approx([0, 0])


@pytest.mark.parametrize(("noise", "least"), [(0.0005, 0.9), (0.02, 0.0)])
def test_what_is_chosen_is_better_or_natural(search, noise, least):
    """A law whose best mixture is known, and 24 proxies: noise as large as the gain leaves the natural shares at times.

    The least predicted loss as such would be a mixture that loses to them in one of these searches.
    """
    weights, target = np.full(3, 0.2), np.full(3, 1 / 3)  # whose best mixture is the target
    natural = np.array([0.7, 0.2, 0.1])
    possible = (np.sqrt(target) - np.sqrt(natural)) @ weights
    for seed in range(16):
        random = np.random.default_rng(seed)
        mixtures = np.stack([natural, *random.dirichlet(10 * (natural + target) / 2, 23)])
        losses = 3 - np.sqrt(mixtures) @ weights + random.normal(0, noise, 24)
        found = choose_best(search, fit_losses(mixtures, losses), mixtures, target, np.ones(3))
        assert (np.sqrt(found) - np.sqrt(natural)) @ weights >= least * possible
        assert found.sum() == pytest.approx(1)


def test_without_a_difference_the_natural_shares_are_kept(search):
    mixtures = np.random.default_rng(0).dirichlet(np.full(3, 3.0), 24)
    fit = fit_losses(mixtures, np.full(24, 3.0))
    assert choose_best(search, fit, mixtures, np.full(3, 1 / 3), np.ones(3)).tolist() == mixtures[0].tolist()


def test_no_share_is_above_its_largest():
    largest = np.array([0.1, 0.5, 0.9])
    shares = limit(np.array([0.6, 0.3, 0.1]), largest)
    assert shares.sum() == pytest.approx(1)
    assert (shares <= largest + 1e-12).all()
    assert limit(np.array([0.05, 0.4, 0.55]), largest) == pytest.approx([0.05, 0.4, 0.55])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"groups": {"a": ["zh"]}}, "no pattern that fits source en"),
        ({"groups": {"a": ["*"], "b": ["en"]}}, "groups.b fits no source"),
        ({"target": {"fr": 1.0}}, "target names fr"),
        ({"target": {"zh": 0.0}}, "one of them above 0"),
        ({"tokens": 10**9}, "more than 4 epochs"),
    ],
)
def test_what_does_not_fit_is_one_line(search, change, complaint):
    with pytest.raises(ChuanError, match=complaint):
        find_mixture(search.model_copy(update=change))
