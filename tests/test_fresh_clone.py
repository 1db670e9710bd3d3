"""A newcomer's first minutes: a clone, `make chat`, an answer."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
QUESTION = b"What is the capital of France?\n"


@pytest.mark.slow
def test_make_chat_sets_up_everything_and_then_starts_at_once(tmp_path: Path):
    clone = tmp_path / "chuan"
    if (ROOT / ".git").exists():
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    else:
        shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(".venv", ".*_cache", ".hypothesis"))
    make = ["make", "--silent", "chat"]
    first = subprocess.run(make, cwd=clone, input=QUESTION, capture_output=True, timeout=1200)
    assert first.returncode == 0, first.stderr.decode()[-2000:]
    assert b"Paris" in first.stdout
    stamp = (clone / ".venv" / "chuan-installed").stat().st_mtime_ns
    started = time.perf_counter()
    second = subprocess.run(make, cwd=clone, input=QUESTION, capture_output=True, timeout=300)
    print(f"second run: {time.perf_counter() - started:.1f} s")
    assert second.stdout == first.stdout
    assert b"Setting up" not in second.stderr
    assert (clone / ".venv" / "chuan-installed").stat().st_mtime_ns == stamp
    help_page = subprocess.run([clone / ".venv/bin/chuan", "--help"], capture_output=True, timeout=60)
    assert b"chat" in help_page.stdout
