"""The whole build on a small corpus: its bytes, its ends and its errors."""

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chuan.corpus.build import build_corpus
from chuan.corpus.recipe import CorpusRecipe, load_corpus_recipe
from chuan.errors import ChuanError
from tests.corpus.test_rules import EN, ZH

RECIPE = """
output = "out"
tasks = 3
[[sources]]
name = "zh"
path = "zh-*.jsonl"
[[sources]]
name = "en"
path = "en.jsonl"
text_key = "body"
[clean.scrub]
kinds = ["email"]
"""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two sources with something for each table of the report, and their recipe."""
    random.seed(1)
    zh = [{"text": f"第{i}个故事。{ZH}写信给a{i}@mail.cn。"} for i in range(60)] + [{"text": "<b>短</b>"}]
    en = [{"body": f"Story {i}. {EN}"} for i in range(60)] + [
        {"body": "12 34"},
        {"body": "Le chat regarde par la fenêtre."},
    ]
    (tmp_path / "zh-1.jsonl").write_text("\n".join(map(json.dumps, zh[:40])), encoding="utf-8")
    (tmp_path / "zh-2.jsonl").write_text("\n".join(map(json.dumps, zh[40:])), encoding="utf-8")
    (tmp_path / "en.jsonl").write_text("\n".join(map(json.dumps, en)), encoding="utf-8")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def recipe(corpus: Path, output: str, *overrides: str) -> CorpusRecipe:
    return load_corpus_recipe(
        corpus / "recipe.toml", [f"data={corpus}", f"output={corpus / output}", "workers=1", *overrides]
    )


def documents_of(output: Path) -> dict[str, bytes]:
    """What a build decides, not when and where it ran: the documents of every stage, and the shards."""
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file()
        and (
            path.suffix == ".zst"
            or path.relative_to(output).parts[0] == "shards"
            or path.parent.name in ("bad", "tally")
        )
    }


def test_a_build_and_its_report(corpus):
    seen = []
    report = build_corpus(recipe(corpus, "out"), seen.append)
    assert {name: row["documents"] for name, row in report["reasons"].items()} == {
        "rule:too_short": 1, "language:und": 1, "language:fr": 1,
    }  # fmt: skip
    assert report["total"]["in"]["documents"] == 123
    assert report["total"]["kept"]["documents"] == 120
    assert report["scrubbed"] == {"email": 60}
    assert report["sources"]["zh"]["files"] == 2
    assert seen[-1].done == seen[-1].tasks == 3
    assert max(stage.documents for stage in seen) == 123
    assert json.loads((corpus / "out" / "report.json").read_text()) == report
    page = (corpus / "out" / "report.html").read_text()
    assert "&lt;b&gt;短" in page
    assert "<b>短" not in page
    assert page.count("<svg") >= 3
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")
    assert str(corpus) not in "".join(map(str, documents_of(corpus / "out").values()))


def test_workers_and_places_change_no_byte(corpus):
    build_corpus(recipe(corpus, "one"))
    build_corpus(recipe(corpus, "two/deeper", "workers=2"))
    first = documents_of(corpus / "one")
    assert len(first) > 6
    assert first == documents_of(corpus / "two/deeper")


def test_killed_and_begun_again_gives_the_same(corpus):
    build_corpus(recipe(corpus, "whole"))
    command = [sys.executable, "-m", "chuan.cli", "corpus", "build", str(corpus / "recipe.toml")]
    for override in (f"data={corpus}", f"output={corpus / 'killed'}", "workers=1"):
        command += ["--set", override]
    code = f"import sys; from chuan.cli import main; sys.argv = {['chuan', *command[3:]]!r}; main()"
    for marker in ["work/clean/counts/00000.json", "work/clean/kept/00001.jsonl.zst", "work/tally/00000.json"]:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while not (corpus / "killed" / marker).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    report = build_corpus(recipe(corpus, "killed"))
    assert report["total"]["kept"]["documents"] == 120
    assert documents_of(corpus / "killed") == documents_of(corpus / "whole")


def test_a_second_build_does_nothing_again_and_another_recipe_is_refused(corpus):
    build_corpus(recipe(corpus, "out"))
    before = {path: path.stat().st_mtime_ns for path in (corpus / "out" / "work").rglob("*.zst")}
    build_corpus(recipe(corpus, "out", "workers=2"))
    assert before == {path: path.stat().st_mtime_ns for path in (corpus / "out" / "work").rglob("*.zst")}
    with pytest.raises(
        ChuanError, match=r"another recipe \(clean.rules.en.min_length differs\); choose another output"
    ):
        build_corpus(recipe(corpus, "out", "clean.rules.en.min_length=7"))
    (corpus / "en.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(ChuanError, match="built from other files than the sources now have"):
        build_corpus(recipe(corpus, "out"))


def test_a_folder_that_is_something_else_is_left_alone(corpus):
    (corpus / "out").mkdir()
    (corpus / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ChuanError, match=r"is not empty \(thesis.txt\), and no build of a corpus"):
        build_corpus(recipe(corpus, "out"))
    (corpus / "file").write_text("")
    with pytest.raises(ChuanError, match="cannot be written"):
        build_corpus(recipe(corpus, "file"))


def test_two_builds_into_one_folder(corpus):
    (corpus / "out" / "work").mkdir(parents=True)
    lock = os.open(corpus / "out" / "work" / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(ChuanError, match="another build is writing"):
        build_corpus(recipe(corpus, "out"))
    os.close(lock)
    build_corpus(recipe(corpus, "out"))


def test_bad_records_are_set_aside_up_to_a_share(corpus):
    with (corpus / "en.jsonl").open("a") as file:
        file.write("\nbroken\n{}\n")
    with pytest.raises(ChuanError, match=r"source en: 2 of 64 records are bad \(3.1%, max_bad_share is 1.0%\)"):
        build_corpus(recipe(corpus, "out"))
    report = build_corpus(recipe(corpus, "out", "max_bad_share=0.05"))
    assert report["total"]["bad"] == 2
    assert [(bad["file"], bad["record"]) for bad in report["bad_records"]] == [("en.jsonl", 63), ("en.jsonl", 64)]


def test_nothing_to_build_from(corpus):
    for name in ("zh-1", "zh-2", "en"):
        (corpus / f"{name}.jsonl").write_text("")
    with pytest.raises(ChuanError, match="are all empty"):
        build_corpus(recipe(corpus, "out"))


def test_nothing_left(corpus):
    with pytest.raises(ChuanError, match="no document is left after clean"):
        build_corpus(recipe(corpus, "out", "clean.rules.en.min_length=9999", "clean.rules.zh.min_length=9999"))


def test_a_full_disk_is_one_line_and_the_build_goes_on_after(corpus):
    kept = corpus / "out" / "work" / "clean" / "kept"
    kept.mkdir(parents=True)
    (kept / "00001.jsonl.zst").symlink_to("/dev/full")
    with pytest.raises(
        ChuanError, match="stage clean: the disk of .* is full; free some space and give the same command"
    ):
        build_corpus(recipe(corpus, "out"))
    (kept / "00001.jsonl.zst").unlink()
    build_corpus(recipe(corpus, "out"))
    build_corpus(recipe(corpus, "whole"))
    assert documents_of(corpus / "out") == documents_of(corpus / "whole")


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("clean.langauge.keep=[]", "clean.langauge is no key"),
        ("sources=[]", "sources"),
        ("executor.kind=grid", "executor.kind"),
        ("tasks=0", "tasks"),
        ("output= ", "output: name the folder"),
        ("output=s3://a/b", "output: .* no address"),
    ],
)
def test_a_recipe_that_is_wrong_is_one_line(corpus, override, what):
    with pytest.raises(ChuanError, match=what):
        load_corpus_recipe(corpus / "recipe.toml", [override])


_SBATCH = """#!/bin/bash
# Runs the tasks of a job at once, one after the other, as Slurm would on its machines.
for script; do :; done
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for task in $(seq 0 "$last"); do
    SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=here RUN_OFFSET=0 bash "$script" > /dev/null 2>&1
done
echo "Submitted batch job 17"
"""


@pytest.mark.slow
def test_slurm_gives_the_same(corpus, monkeypatch):
    """Slurm's commands are played by scripts: what is tested is that a task on another machine finds all it needs."""
    commands = corpus / "bin"
    commands.mkdir()
    scripts = {
        "sbatch": _SBATCH,
        "srun": '#!/bin/bash\nwhile [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done\nexec "$@"\n',
        "scontrol": "#!/bin/bash\necho here\n",
        "squeue": "#!/bin/bash\n",
    }
    for name, script in scripts.items():
        (commands / name).write_text(script)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    build_corpus(recipe(corpus, "local"))
    build_corpus(recipe(corpus, "slurm", "executor.kind=slurm"))
    assert documents_of(corpus / "slurm") == documents_of(corpus / "local")


def test_without_slurm_or_with_a_job_that_dies(corpus, monkeypatch):
    monkeypatch.setenv("PATH", str(corpus))
    with pytest.raises(ChuanError, match="sbatch is not on this machine"):
        build_corpus(recipe(corpus, "out", "executor.kind=slurm"))
    for name, script in {"sbatch": "#!/bin/sh\necho Submitted 17\n", "squeue": "#!/bin/sh\n"}.items():
        (corpus / name).write_text(script)
        (corpus / name).chmod(0o755)
    with pytest.raises(
        ChuanError, match="stage clean failed: .*the Slurm job 17 ended with 3 tasks undone; its logs are"
    ):
        build_corpus(recipe(corpus, "out", "executor.kind=slurm"))


@pytest.mark.slow
def test_ray_gives_the_same(corpus):
    build_corpus(recipe(corpus, "local"))
    build_corpus(recipe(corpus, "ray", "executor.kind=ray", "executor.memory_gb=1"))
    assert documents_of(corpus / "ray") == documents_of(corpus / "local")
