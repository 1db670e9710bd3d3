"""Recipes: what is read, what is refused, and by which line."""

import pytest
from pydantic import Field

from chuan.errors import ChuanError
from chuan.recipes import Settings, load_recipe, render_recipe


class Inner(Settings):
    rate: float = Field(0.5, gt=0)
    names: tuple[str, ...] = ()


class Outer(Settings):
    steps: int
    inner: Inner = Inner()
    note: str | None = None


def read(tmp_path, text: str, *overrides: str) -> Outer:
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, Outer, overrides)


def test_overrides_replace_single_keys(tmp_path):
    recipe = read(
        tmp_path, "steps = 3\n[inner]\nrate = 2.0", "inner.names=['甲', 'b']", "note=川 is a river", "steps=4"
    )
    assert recipe == Outer(steps=4, inner=Inner(rate=2.0, names=("甲", "b")), note="川 is a river")


def test_a_rendered_recipe_reads_back(tmp_path):
    recipe = read(tmp_path, "steps = 3", "inner.names=['x']")
    assert read(tmp_path, render_recipe(recipe)) == recipe
    assert "rate = 0.5" in render_recipe(recipe)


@pytest.mark.parametrize(
    ("text", "override", "complaint"),
    [
        ("steps = 3\nstepz = 4", "", "stepz is no key of this recipe"),
        ("steps = 3\n[inner]\nratio = 1.0", "", "inner.ratio is no key"),
        ("", "", "steps is missing"),
        ("steps = '3'", "", "steps: .*integer"),
        ("steps = 3\n[inner]\nrate = 0.0", "", "inner.rate: .*greater than 0"),
        ("steps = ", "", "not TOML"),
        ("steps = 3", "steps", "not of the form a.b=c"),
        ("steps = 3", "steps.x=1", "is a value, not a table"),
        ("steps = 3", "inner.rates=1", "inner.rates is no key"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, text, override, complaint):
    with pytest.raises(ChuanError, match=complaint) as caught:
        read(tmp_path, text, *filter(None, [override]))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(ChuanError, match="cannot be read"):
        load_recipe(tmp_path / "none.toml", Outer)
