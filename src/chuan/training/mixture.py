"""The mixture found by proxies: many small models on drawn mixtures, a regression from shares to loss, its best point.

In: a recipe, and shards that `chuan corpus build` made. Out: `mixture.toml`, to be put into the corpus' recipe, and
`report.json`. The method is RegMix (Liu et al. 2024, https://arxiv.org/abs/2407.01492) with two changes. The regression
is a ridge over the square roots of shares, which bend as losses do, in place of boosted trees: one slope a group is all
that two dozen noisy proxies can tell. And what is taken is not the least predicted loss, but the surest gain on the
natural shares: the promise less two standard errors. Proxies that are trained stay in `proxies/`: a search that was
ended goes on, and one that is asked for more adds to them.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from chuan.corpus.shard_format import MANIFEST, Manifest
from chuan.corpus.shards import ShardReader
from chuan.corpus.tokenise import describe_tokenizer
from chuan.errors import ChuanError
from chuan.json_file import read_json, save_json
from chuan.recipes import Settings, load_recipe, render_recipe
from chuan.staging import staged_file
from chuan.tokenizer.folder import load_tokenizer
from chuan.training.proxy import ProxySettings, measure, read_pool, train_proxy

_PENALTIES = 10.0 ** np.arange(-6, 2)  # of the ridge; the one with the least leave-one-out error is taken
_CANDIDATES, _AVERAGED = 100_000, 100  # mixtures whose loss is predicted, how many of the best are averaged (RegMix)
_ERRORS = 2.0  # standard errors that a promised gain has to exceed; with one, too much was moved (docs/log.md)


class MixtureRecipe(Settings):
    """What `chuan corpus mix` reads."""

    output: str
    shards: str  # of a build at natural proportions, or whose mixture is to be improved
    tokenizer: str  # the one of the shards
    groups: dict[str, list[str]] = Field(default_factory=dict)  # patterns of sources' names; without, each its own
    target: dict[str, float] = Field(default_factory=dict)  # how much the loss of each group counts; without, all alike
    tokens: int | None = Field(default=None, ge=1)  # of the training that the mixture is for; as many as there are
    max_epochs: float = Field(default=4.0, ge=1)  # how often a text may be seen in it (Muennighoff et al. 2023: 4)
    proxies: int = Field(default=32, ge=8)
    spread: float = Field(default=10.0, gt=0)  # of the Dirichlet they are drawn from; smaller is wider
    seed: int = 0
    proxy: ProxySettings = Field(default_factory=ProxySettings)


def run_corpus_mix(path: str, overrides: Sequence[str]) -> int:
    """Finds a mixture, and says where it is."""
    recipe = load_recipe(path, MixtureRecipe, overrides)
    report = find_mixture(recipe)
    print(f"{'group':16} {'natural':>8} {'found':>8} {'weight':>8}")
    for name, row in report["groups"].items():
        print(f"{name:16} {row['natural']:8.3f} {row['found']:8.3f} {row['weight']:8.2f}")
    predicted = report["predicted"]
    print(f"bits per byte, predicted: {predicted['natural']:.4f} at natural shares, {predicted['found']:.4f} as found")
    gain = report["gain"]
    if gain["promised"]:
        print(f"a gain of {gain['promised']:.4f} with a standard error of {gain['standard_error']:.4f}")
    else:
        print(f"no mixture is foretold to gain more than {_ERRORS:g} standard errors: the natural shares are kept")
    print(f"rank correlation of predicted and measured, each left out in turn: {report['rank_correlation']:.2f}")
    print(f"{Path(recipe.output) / 'mixture.toml'}: to be put into the recipe of the corpus")
    return 0


def find_mixture(recipe: MixtureRecipe) -> dict[str, Any]:
    """Trains what is not trained yet; returns the report.

    Raises ChuanError for shards, groups or a target that do not fit, and a folder that holds another search.
    """
    reader, validation = ShardReader(recipe.shards), ShardReader(recipe.shards, "validation")
    if describe_tokenizer(recipe.tokenizer).sha256 != reader.manifest.tokenizer.sha256:
        raise ChuanError(
            f"{recipe.tokenizer} is not the tokenizer of {recipe.shards}; name the one they were made with"
        )
    groups = assign_groups(recipe.groups, reader.manifest)
    names = list(dict.fromkeys(groups.values()))
    target = weigh_target(recipe.target, names)
    natural, largest = count_shares(recipe, reader.manifest, groups)
    output = Path(recipe.output)
    _claim(recipe, output)
    mixtures = draw_mixtures(recipe, natural, target, largest)
    pool = read_pool(reader, validation, load_tokenizer(recipe.tokenizer), groups, recipe.proxy)
    losses = []
    with _bar(len(mixtures)) as bar:
        for number, shares in enumerate(mixtures):
            path = output / "proxies" / f"{number:04d}.json"
            if not path.exists():
                by_name = dict(zip(names, shares.tolist(), strict=True))
                model = train_proxy(pool, by_name, recipe.proxy, recipe.seed)
                path.parent.mkdir(parents=True, exist_ok=True)
                save_json(path, {"shares": by_name, "bits_per_byte": measure(model, pool, recipe.proxy)})
            found = read_json(path)["bits_per_byte"]
            losses.append(sum(found[name] * share for name, share in zip(names, target, strict=True)))
            bar.update(bar.task_ids[0], completed=number + 1)
    fit = fit_losses(mixtures, np.array(losses))
    best = choose_best(recipe, fit, mixtures, target, largest)
    gains, errors = fit.compare(best[None], mixtures[0])
    factors = best / natural
    report = {
        "groups": {
            name: {"natural": natural[i], "found": best[i], "weight": factors[i], "target": target[i]}
            for i, name in enumerate(names)
        },
        "predicted": {"natural": float(fit.predict(mixtures[:1])[0]), "found": float(fit.predict(best[None])[0])},
        "gain": {"promised": float(gains[0]), "standard_error": float(errors[0])},
        "measured": {"natural": losses[0], "best proxy": min(losses)},
        "rank_correlation": fit.rank_correlation,
        "left_out_error": fit.left_out_error,
        "spread_of_losses": float(np.std(losses)),
    }
    save_json(output / "report.json", report)
    before = reader.manifest.recipe.get("mixture", {}).get("sources", {})
    weights = {s: round(float(factors[names.index(g)]) * before.get(s, 1.0), 3) for s, g in groups.items()}
    with staged_file(output / "mixture.toml") as temporary:
        temporary.write_text(tomli_w.dumps({"mixture": {"sources": weights}}), encoding="utf-8")
    return report


def assign_groups(patterns: Mapping[str, Sequence[str]], manifest: Manifest) -> dict[str, str]:
    """The group of each source that has a text to train on. The first pattern that fits decides."""
    filled = {count.source for count in manifest.splits["train"].groups}
    sources = [source for source in manifest.sources if source in filled]
    if not patterns:
        return {source: source for source in sources}
    found = {}
    for source in sources:
        fitting = [g for g, globs in patterns.items() if any(fnmatch.fnmatchcase(source, glob) for glob in globs)]
        if not fitting:
            raise ChuanError(f"groups has no pattern that fits source {source}; add one")
        found[source] = fitting[0]
    if empty := [name for name in patterns if name not in found.values()]:
        raise ChuanError(f"groups.{empty[0]} fits no source of the shards, or another group took all of them")
    return {source: found[source] for name in patterns for source in sources if found[source] == name}


def weigh_target(target: Mapping[str, float], names: Sequence[str]) -> np.ndarray:
    """What each group's loss counts; the sum is 1."""
    if unknown := sorted(target.keys() - set(names)):
        raise ChuanError(f"target names {unknown[0]}, which is no group; the groups are {', '.join(names)}")
    weights = np.array([target.get(name, 0.0) if target else 1.0 for name in names])
    if weights.min() < 0 or weights.sum() <= 0:
        raise ChuanError("target needs weights of 0 or more, one of them above 0")
    return weights / weights.sum()


def count_shares(recipe: MixtureRecipe, manifest: Manifest, groups: Mapping[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """The share of each group in the shards' tokens, and the largest that keeps it within `max_epochs`."""
    totals = dict.fromkeys(groups.values(), 0)
    for count in manifest.splits["train"].groups:
        totals[groups[count.source]] += count.tokens
    tokens = np.array(list(totals.values()), float)
    largest = recipe.max_epochs * tokens / (recipe.tokens or tokens.sum())
    if largest.sum() < 1:
        raise ChuanError(
            f"{recipe.tokens:,} tokens are more than {recipe.max_epochs:g} epochs of {int(tokens.sum()):,}; allow more "
            "epochs or fewer tokens"
        )
    return tokens / tokens.sum(), largest


def draw_mixtures(recipe: MixtureRecipe, natural: np.ndarray, target: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """(proxies, groups): the natural shares, then draws from between them and the target's. More only adds to fewer."""
    random = np.random.default_rng(recipe.seed)
    drawn = random.dirichlet(recipe.spread * (natural + target) / 2, recipe.proxies - 1)
    return np.stack([limit(shares, largest) for shares in (natural, *drawn)])


def limit(shares: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """The shares with none above its largest; what is cut off goes to the others in proportion to theirs."""
    shares = np.maximum(shares, 1e-9) / np.maximum(shares, 1e-9).sum()
    full = np.zeros(len(shares), bool)
    while (over := ~full & (shares > largest)).any():
        full |= over
        shares = np.where(full, largest, shares)
        free = 1 - largest[full].sum()
        shares[~full] *= free / shares[~full].sum() if (~full).any() else 1
    return shares


class Fit:
    """A ridge from the roots of shares to the loss, and how well it foretells a proxy that it has not seen."""

    def __init__(self, mixtures: np.ndarray, losses: np.ndarray, penalty: float) -> None:
        design = _features(mixtures)
        self._mean, self._level = design.mean(0), float(losses.mean())
        centred = design - self._mean
        self._inverse = np.linalg.inv(centred.T @ centred + penalty * np.eye(centred.shape[1]))
        self._slopes = self._inverse @ centred.T @ (losses - self._level)
        # Leave-one-out in closed form: a residual by one minus its leverage.
        leverage = np.einsum("ij,jk,ik->i", centred, self._inverse, centred) + 1 / len(losses)
        left_out = losses - (losses - self.predict(mixtures)) / (1 - leverage)
        self.left_out_error = float(np.sqrt(np.mean((losses - left_out) ** 2)))
        self.rank_correlation = float(np.corrcoef(left_out.argsort().argsort(), losses.argsort().argsort())[0, 1])

    def predict(self, mixtures: np.ndarray) -> np.ndarray:
        """(N, groups) -> (N,)."""
        return self._level + (_features(mixtures) - self._mean) @ self._slopes

    def compare(self, mixtures: np.ndarray, base: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How far the loss of each mixture is below that of `base`, and the standard error of that. (N,) each.

        The error is the ridge's own, with the leave-one-out error as the noise of a proxy.
        """
        steps = _features(mixtures) - _features(base[None])
        errors = self.left_out_error * np.sqrt(np.einsum("ij,jk,ik->i", steps, self._inverse, steps))
        return -(steps @ self._slopes), errors


def fit_losses(mixtures: np.ndarray, losses: np.ndarray) -> Fit:
    """The fit whose penalty has the least leave-one-out error."""
    return min((Fit(mixtures, losses, p) for p in _PENALTIES), key=lambda fit: fit.left_out_error)


def choose_best(
    recipe: MixtureRecipe, fit: Fit, mixtures: np.ndarray, target: np.ndarray, largest: np.ndarray
) -> np.ndarray:
    """The mean of the mixtures that are surest to gain on the natural shares, or those where none is sure to.

    The surest has the largest gain less two standard errors: the best of 100,000 promises as such is the luckiest one.
    Each share is between the least and the most that proxies had.
    """
    random = np.random.default_rng(recipe.seed + 1)
    natural = mixtures[0]
    drawn = random.dirichlet(recipe.spread * (natural + target) / 2, _CANDIDATES)
    seen = (drawn >= mixtures.min(0)) & (drawn <= np.minimum(mixtures.max(0), largest))
    drawn = drawn[seen.all(1)]
    if len(drawn) < _AVERAGED:
        raise ChuanError("max_epochs leaves hardly any mixture; allow more epochs or fewer tokens")
    gains, errors = fit.compare(drawn, natural)
    best = drawn[np.argsort(_ERRORS * errors - gains, kind="stable")[:_AVERAGED]].mean(0)
    gain, error = fit.compare(best[None], natural)
    return best if gain[0] > _ERRORS * error[0] else natural


def _features(mixtures: np.ndarray) -> np.ndarray:
    return np.sqrt(mixtures)


def _claim(recipe: MixtureRecipe, output: Path) -> None:
    """Leaves word of what is searched for, or compares it with the search that is there."""
    fixed = recipe.model_dump(mode="json", exclude={"output", "proxies"})
    manifest = hashlib.sha256((Path(recipe.shards) / MANIFEST).read_bytes()).hexdigest()
    mark = hashlib.sha256(json.dumps([fixed, manifest], sort_keys=True).encode()).hexdigest()
    path = output / "search.json"
    if path.exists():
        if read_json(path).get("of") != mark:
            raise ChuanError(f"{output} holds the search of another recipe or other shards; choose another output")
        return
    if output.exists() and any(output.iterdir()):
        raise ChuanError(f"{output} is not empty, and no search for a mixture; choose another output")
    output.mkdir(parents=True, exist_ok=True)
    with staged_file(output / "recipe.toml") as temporary:
        temporary.write_text(render_recipe(recipe), encoding="utf-8")
    save_json(path, {"of": mark})


def _bar(total: int) -> Progress:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, disable=not console.is_terminal)
    bar.add_task("proxies", total=total)
    return bar
