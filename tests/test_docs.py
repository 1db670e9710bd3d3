"""What the documents promise."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READMES = ["README.md", "README.zh.md"]


def blocks(name: str, language: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("name", READMES)
def test_first_lines_are_make_chat_and_make_test(name):
    first = blocks(name, "sh")[0].splitlines()
    assert first[0].startswith("make chat ")
    assert first[1].startswith("make test ")


def test_both_readmes_show_the_same_commands():
    def bare(text: str) -> str:
        return re.sub(r"\s+#.*", "", text)

    for language in ("sh", "python", "py"):
        english, chinese = (list(map(bare, blocks(name, language))) for name in READMES)
        assert english == chinese
    headings = [len(re.findall(r"^#", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)) for name in READMES]
    assert headings[0] == headings[1]


@pytest.mark.xdist_group("smollm2")
def test_the_python_example_runs(smollm2_path):
    done = subprocess.run([sys.executable, "-c", blocks("README.md", "python")[0]], capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"Paris") >= 2


def test_links_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
