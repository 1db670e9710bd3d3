"""Downloads from a real server on loopback, by the real hub library, each in a new process (HF_* is read at import)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.hub_server import HubServer

FILES = {
    "config.json": b"{}",
    "generation_config.json": b"{}",
    "tokenizer.model": b"spm",
    "README.md": b"# a model",
    "modeling_baichuan.py": b"raise SystemExit('executed')",
    "quantizer.py": b"raise SystemExit('executed')",
    "onnx/model.onnx": b"onnx",
    "onnx/model.safetensors": b"other",
}
BIN = {"pytorch_model.bin": b"pickle", "training_args.bin": b"pickle"}
SAFE = {"model.safetensors": b"safe"}


def fetch(repo_id: str, home: Path, endpoint: str, revision: str | None = None, **environment: str):
    code = (
        "import sys\nfrom chuan.checkpoints.hub import fetch_from_hub\nfrom chuan.errors import ChuanError\n"
        f"try:\n    print(fetch_from_hub({repo_id!r}, {revision!r}))\n"
        "except ChuanError as error:\n    sys.exit('refused: ' + str(error))\n"
    )
    settings = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=settings, timeout=120)


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    lines = [line for line in done.stderr.splitlines() if line.startswith("refused: ")]
    assert done.returncode == 1, done.stderr
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in lines[0] for word in words), lines


@pytest.mark.parametrize(("weights", "wanted"), [(SAFE | BIN, "model.safetensors"), (BIN, "pytorch_model.bin")])
def test_only_data_is_fetched_and_safetensors_are_preferred(tmp_path, weights, wanted):
    with HubServer({"someone/model": FILES | weights}) as hub:
        done = fetch("someone/model", tmp_path, hub.endpoint)
        assert done.returncode == 0, done.stderr
        folder = Path(done.stdout.strip())
        names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert names == {"config.json", "generation_config.json", "tokenizer.model", "README.md", wanted}
        assert (folder / wanted).read_bytes() == weights[wanted]
        assert not [path for path in hub.requests if path.endswith(".py") or "onnx" in path]


def test_a_second_run_works_offline_and_without_the_hub(tmp_path):
    with HubServer({"someone/model": FILES | SAFE}) as hub:
        first = fetch("someone/model", tmp_path, hub.endpoint)
        asked = len(hub.requests)
        offline = fetch("someone/model", tmp_path, hub.endpoint, HF_HUB_OFFLINE="1")
        assert len(hub.requests) == asked
    gone = fetch("someone/model", tmp_path, hub.endpoint)
    assert first.returncode == 0, first.stderr
    assert first.stdout == offline.stdout == gone.stdout


def test_what_cannot_be_had_is_one_line(tmp_path):
    with HubServer({"someone/model": FILES | SAFE}) as hub:
        assert_refused(fetch("someone/other", tmp_path, hub.endpoint), "someone/other", "check the id")
        assert_refused(fetch("someone/model", tmp_path, hub.endpoint, "v9"), "v9")
        assert_refused(fetch("not a hub id!", tmp_path, hub.endpoint), "hub id")
        assert_refused(fetch("someone/model", tmp_path / "x", hub.endpoint, HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE")
    assert_refused(fetch("someone/model", tmp_path / "y", hub.endpoint), "cannot be reached")
