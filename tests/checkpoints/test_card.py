"""Cards: what is read of anybody's, and what ours say."""

from pathlib import Path

import pytest
import yaml

from chuan.checkpoints.card import BAICHUAN_LICENCE, UNKNOWN_LICENCE, Origin, describe_origin, render_card, write_card
from chuan.checkpoints.front_matter import read_front_matter
from tests.support.loading import refusal


def write_readme(folder: Path, matter: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(f"---\n{matter}\n---\n# A model\n", encoding="utf-8")
    return folder


def describe(folder: Path, name: str = "model", revision: str | None = None, kind: str = "Llama folder") -> Origin:
    return describe_origin(folder, kind, read_front_matter(folder), name, revision)


def read_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


# Reading.

BOMB = "\n".join(["a: &a [lol, lol]", *(f"{c}: &{c} [*{p}, *{p}, *{p}]" for p, c in zip("abcdefghijklmnopqrstuvwx", "bcdefghijklmnopqrstuvwxy", strict=True))])  # fmt: skip # noqa: E501
MERGES = "\n".join(["a: &a {x: 1}", *(f"{c}: &{c} {{<<: [*{p}, *{p}, *{p}, *{p}]}}" for p, c in zip("abcdefghijklmnop", "bcdefghijklmnopq", strict=True))])  # fmt: skip # noqa: E501


@pytest.mark.parametrize(
    "matter",
    [
        f"{BOMB}\nlicense: *y",
        f"{MERGES}\nlicense: x",
        "license: " + "x" * 201,
        "license: [" * 5000,
        "license: {a: b}",
        "license: 5",
        "license: !!timestamp x",
        "license: !!python/object/apply:os.system [id]",
        "license: other",
        "license: unknown",
    ],
    ids=lambda matter: matter[-24:],
)
def test_a_card_that_states_no_licence(tmp_path: Path, matter: str):
    write_readme(tmp_path, matter)
    assert describe(tmp_path).licence == UNKNOWN_LICENCE
    assert describe(tmp_path, kind="Baichuan 2 folder").licence == BAICHUAN_LICENCE


@pytest.mark.parametrize(
    ("matter", "licence"),
    [
        ("license: mit", "mit"),
        ("license: other\nlicense_name: mine", "mine"),
        ("license: [mit, apache-2.0]", "mit, apache-2.0"),
        ('license: "x\\uD800"', "x\\ud800"),
        ('license_name: "Evil\\n\\n## Intended use\\n\\nAnything"\nlicense: other', "Evil ## Intended use Anything"),
        ('license: "\\e[31m[/red]"', "\\x1b[31m[/red]"),
    ],
)
def test_a_licence_is_one_printable_line(tmp_path: Path, matter: str, licence: str):
    origin = describe(write_readme(tmp_path / "model", matter))
    assert origin.licence == licence
    (tmp_path / "out").mkdir()
    write_card(tmp_path / "out", origin, {})
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert card.count("\n## ") == 4
    assert describe(tmp_path / "out").licence == licence  # through any number of conversions


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path):
    (tmp_path / "secret").write_text("---\nlicense: mit\n---\nSECRET")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "LICENSE").symlink_to(tmp_path / "secret")
    (folder / "README.md").symlink_to(tmp_path / "secret")
    (folder / "NOTICE").write_text("terms")
    (folder / "COPYING").symlink_to("NOTICE")
    origin = describe(folder)
    assert [file.name for file in origin.licence_files] == ["COPYING", "NOTICE"]
    assert origin.licence == UNKNOWN_LICENCE


def test_links_into_the_hub_s_cache_are_followed(tmp_path: Path):
    folder, blobs = tmp_path / "models--a--b" / "snapshots" / "1", tmp_path / "models--a--b" / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "aa").write_text("---\nlicense: mit\n---\n")
    for name in ("LICENSE", "README.md"):
        (folder / name).symlink_to(blobs / "aa")
    (tmp_path / "linked").symlink_to(folder)
    for place in (folder, tmp_path / "linked"):
        assert (describe(place).licence, len(describe(place).licence_files)) == ("mit", 1)


def test_files_that_are_licences(tmp_path: Path):
    names = ["LICENSE", "USE_POLICY.md", "UNLICENSE", "licence.txt", "模型许可协议.pdf", "COPYING"]
    for name in [*names, "license.py", "license.sh", "model.bin"]:
        (tmp_path / name).write_text("x")
    (tmp_path / "LICENSE.d").mkdir()
    assert {file.name for file in describe(tmp_path).licence_files} == set(names)


def test_a_licence_that_cannot_be_read_is_named(tmp_path: Path):
    origin = Origin("model", "Llama folder", licence_files=(tmp_path / "LICENSE",))
    assert f"the licence {tmp_path}/LICENSE cannot be read" in refusal(write_card, tmp_path, origin, {})


# Writing.


def test_a_hub_s_model_is_the_base_at_its_own_revision(tmp_path: Path):
    matter = "license: apache-2.0\nbase_model: baichuan-inc/Baichuan2-7B-Chat\nbase_model_revision: old"
    origin = describe(write_readme(tmp_path, matter), "me/my-finetune", "a" * 40)
    card = render_card(origin, {"weights": "float16"})
    assert read_matter(card)["base_model"] == "me/my-finetune"
    assert read_matter(card)["base_model_revision"] == "a" * 40
    assert "\n# me/my-finetune, converted by Chuan\n" in card
    assert "| which was made from | baichuan-inc/Baichuan2-7B-Chat at revision old |" in card


def test_a_folder_s_base_keeps_its_revision_through_a_second_conversion(tmp_path: Path):
    first = render_card(describe(write_readme(tmp_path / "a", "license: mit"), "me/model", "b" * 40), {})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text(first)
    card = render_card(describe(tmp_path / "mine", "mine"), {})
    assert read_matter(card)["base_model"] == "me/model"
    assert read_matter(card)["base_model_revision"] == "b" * 40
    assert "\n# mine, converted by Chuan\n" in card
    assert "| revision | not known |" in card


def test_several_bases_stay_a_list(tmp_path: Path):
    origin = describe(write_readme(tmp_path, "license: mit\nbase_model: [a/b, c/d]"), "merge")
    assert read_matter(render_card(origin, {}))["base_model"] == ["a/b", "c/d"]


def test_odd_names_of_files_stay_one_line(tmp_path: Path):
    for name in ("LICENSE|x`y.md", "LICENSE-\udcff.txt", "LICENSE\n## Intended use.md"):
        (tmp_path / name).write_text("x")
    origin = describe(tmp_path, "n\udcff\n# x")
    (tmp_path / "out").mkdir()
    write_card(tmp_path / "out", origin, {})
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert card.count("\n## ") == 4
    assert "`LICENSE/x_y.md`" in card
    assert len(list((tmp_path / "out").iterdir())) == 4
