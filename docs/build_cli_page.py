"""Writes docs/cli.md from the command line itself: `make docs`. A test compares the two."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def render_page() -> str:
    """The page, by typer's own generator."""
    names = ["--name", "chuan", "--title", "The command line"]
    command = [sys.executable, "-m", "typer", "chuan.cli", "utils", "docs", *names]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(render_page(), encoding="utf-8")
