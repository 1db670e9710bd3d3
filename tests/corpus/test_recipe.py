from pathlib import Path

import pytest

from chuan.corpus.recipe import CorpusRecipe, count_workers, load_corpus_recipe
from chuan.recipes import load_recipe, render_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("corpus-*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_of_the_house_are_read_and_written_again(path, tmp_path):
    recipe = load_corpus_recipe(path, ["data=/somewhere"])
    assert recipe.data == "/somewhere"
    (tmp_path / "again.toml").write_text(render_recipe(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "again.toml", CorpusRecipe) == recipe


def test_workers():
    sources = [{"name": "a", "path": "b"}]
    assert count_workers(CorpusRecipe(output="o", sources=sources, tasks=3, workers=8)) == 3
    assert count_workers(CorpusRecipe(output="o", sources=sources, tasks=1000, executor={"kind": "slurm"})) == 1000
    assert 1 <= count_workers(CorpusRecipe(output="o", sources=sources, tasks=1000)) < 1000
