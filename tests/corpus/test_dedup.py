"""De-duplication on planted truth: what is nearly the same leaves, strangers stay, repeated passages are cut."""

from pathlib import Path

from chuan.corpus.dedup import DedupSettings, dedup_stages
from tests.support.planted import Writer, read_folder, run_stages, write_source

TASKS = 3
SHINGLE = DedupSettings().near.shingle


def deduplicate(tasks: list[list[tuple[str, str]]], folder: Path) -> tuple[dict, dict]:
    source = write_source(tasks, folder / "source")
    run_stages(dedup_stages(DedupSettings(), source, str(folder / "work"), TASKS))
    return read_folder(folder / "work" / "kept"), read_folder(folder / "work" / "rejected")


def test_near_duplicates_are_found_and_strangers_are_not(tmp_path):
    tasks: list[list[tuple[str, str]]] = [[] for _ in range(TASKS)]
    for seed, language in enumerate(("zh", "en")):
        writer = Writer(language, seed)
        for i in range(30):
            for side, text in enumerate(writer.write_pair(500, 0.8, SHINGLE)):
                tasks[(i + side) % TASKS].append((f"{language}-{i}-{side}", text))
            tasks[i % TASKS].append((f"stranger-{language}-{i}", writer.write(500)))
    kept, rejected = deduplicate(tasks, tmp_path)
    assert not [name for name in rejected if name.startswith("stranger")]
    assert len(rejected) >= 57  # of 60 pairs
    for name, document in rejected.items():
        pair = name.rsplit("-", 1)[0]
        assert document.metadata["reason"] == "near_duplicate"
        assert {f"{pair}-0", f"{pair}-1"} & kept.keys()


def test_the_first_of_equal_texts_stays(tmp_path):
    text = Writer("zh", 5).write(200)
    tasks = [[("a", text)], [("b", f"  {text}\n")], [("c", text), ("d", Writer("en", 1).write(200))]]
    kept, rejected = deduplicate(tasks, tmp_path)
    assert set(kept) == {"a", "d"}
    assert {document.metadata["reason"] for document in rejected.values()} == {"exact_duplicate"}


def test_passages_that_stand_in_several_documents_are_cut_from_the_later(tmp_path):
    writer = Writer("zh", 6)
    notice = "本站所有文章未经作者本人书面许可不得以任何形式转载复制或者建立镜像，违者将依照法律追究责任。"
    tasks = [[(str(i), f"{writer.write(150)}\n{notice}\n{writer.write(150)}")] for i in range(TASKS)]
    kept, rejected = deduplicate(tasks, tmp_path)
    assert len(kept) == TASKS
    assert not rejected
    assert [notice in kept[str(i)].text for i in range(TASKS)] == [True, False, False]
    short = [[(f"{i}", f"{writer.write(100)}\n谢谢。\n{writer.write(100)}")] for i in range(TASKS)]
    kept, _ = deduplicate(short, tmp_path / "short")
    assert all("谢谢。" in document.text for document in kept.values())
