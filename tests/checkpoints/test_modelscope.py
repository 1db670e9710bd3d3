"""Downloads from a ModelScope on loopback, by its real library, each in a new process (its settings are read once)."""

import random
import signal
import subprocess
from pathlib import Path

import pytest

from chuan.checkpoints.hub import list_whole_weights
from tests.checkpoints.test_hub import (
    BIN,
    FILES,
    OTHERS,
    REPO,
    SAFE,
    assert_each_refused,
    assert_refused,
    fetched,
    names_in,
    start_process,
    wait_for,
)
from tests.support.modelscope_server import ModelScopeServer

LARGE = {"model.safetensors": random.Random(0).randbytes(36 << 20)}
QUICK = {"MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS": "1", "MODELSCOPE_DOWNLOAD_MAX_RETRIES": "1"}


def start(name: str, home: Path, endpoint: str, weights: bool = True, **environment: str) -> subprocess.Popen[str]:
    settings = {"HOME": str(home), "MODELSCOPE_ENDPOINT": endpoint, "CHUAN_HUB": "modelscope", **QUICK}
    return start_process(name, home, weights, settings | environment)


def fetch(name: str, home: Path, endpoint: str, weights: bool = True, **environment: str):
    child = start(name, home, endpoint, weights, **environment)
    out, err = child.communicate(timeout=60)
    return subprocess.CompletedProcess(child.args, child.returncode, out, err)


def test_only_data_is_fetched_and_the_cache_serves_when_the_hub_is_gone(tmp_path):
    with ModelScopeServer({REPO: FILES | OTHERS | SAFE | BIN}) as hub:
        folder = fetched(fetch(REPO, tmp_path, hub.endpoint, weights=False))
        assert names_in(folder) == set(FILES)
        assert_refused(fetch(REPO, tmp_path, "http://127.0.0.1:9"), "cannot be reached", "MODELSCOPE_ENDPOINT")
        done = fetch(f"modelscope:{REPO}", tmp_path, hub.endpoint, CHUAN_HUB="huggingface")
        assert fetched(done) == folder
        assert done.stderr == ""
        assert names_in(folder) == {*FILES, *SAFE}
        assert not [path for path in hub.requests if ".py" in path or "onnx" in path or ".bin" in path]
        downloads = len(hub.asked("FilePath"))
        assert fetched(fetch(REPO, tmp_path, hub.endpoint)) == folder
        assert len(hub.asked("FilePath")) == downloads
    assert fetched(fetch(REPO, tmp_path, hub.endpoint)) == folder


def test_a_revision(tmp_path):
    cache = tmp_path / "cache"
    with ModelScopeServer({REPO: FILES | SAFE, f"{REPO}@v1.0": FILES | {"model.safetensors": b"older"}}) as hub:
        folder = fetched(fetch(f"{REPO}@v1.0", tmp_path, hub.endpoint, MODELSCOPE_CACHE=str(cache)))
        assert (folder / "model.safetensors").read_bytes() == b"older"
        assert folder.is_relative_to(cache)


def test_what_the_hub_answers_is_one_line(tmp_path):
    answers = {
        "a/token": (401, ["token", "MODELSCOPE_API_TOKEN"]),
        "a/forbidden": (403, ["refuses", "MODELSCOPE_API_TOKEN"]),
        "a/unknown@v9": (404, ["revision 'v9'", "check the id"]),
        "a/often": (429, ["wait"]),
        "a/fault": (500, ["fault", "later"]),
    }
    expected = {name: [name.partition("@")[0], *words] for name, (_, words) in answers.items()}
    ggufs = {"m.Q4_0.gguf": b"", "m.Q8_0.gguf": b""}
    with ModelScopeServer({"a/gguf": FILES | ggufs, "a/none": FILES}) as hub:
        hub.faults.statuses = {f"{name.partition('@')[0]}/": (status, {}) for name, (status, _) in answers.items()}
        expected |= {"a/gguf": ["m.Q4_0.gguf, m.Q8_0.gguf"], "a/none": ["no weights"]}
        assert_each_refused(fetch(" ".join(expected), tmp_path, hub.endpoint), expected)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_wrong_bytes_are_found_removed_and_fetched_again(tmp_path, name):
    with ModelScopeServer({REPO: FILES | SAFE}) as hub:
        hub.faults.wrong.add(name)
        assert_refused(fetch(REPO, tmp_path, hub.endpoint), f"wrong bytes for {name}", "removed", "try again")
        assert not list((tmp_path / ".cache" / "modelscope").rglob(f"{name}*"))
        hub.faults.wrong.clear()
        folder = fetched(fetch(REPO, tmp_path, hub.endpoint))
        assert {file: (folder / file).read_bytes() for file in FILES | SAFE} == FILES | SAFE


def test_a_cut_or_killed_download_goes_on_and_never_leaves_a_half(tmp_path):
    with ModelScopeServer({REPO: FILES | LARGE}) as hub:
        hub.faults.seconds_per_block = 0.02
        for moment in (1 << 20, 12 << 20):
            before = hub.sent.get("model.safetensors", 0)
            child = start(REPO, tmp_path, hub.endpoint)
            wait_for(lambda m=moment, b=before: hub.sent.get("model.safetensors", 0) - b >= m)
            child.send_signal(signal.SIGKILL)
            child.communicate()
            for folder in tmp_path.glob(".cache/modelscope/models/*/snapshots/*"):
                assert list_whole_weights(folder) == []
        hub.faults.seconds_per_block = 0
        assert_refused(fetch(REPO, tmp_path, "http://127.0.0.1:9"), "not whole")
        hub.ranges.clear()
        hub.faults.cut_after["model.safetensors"] = [4 << 20]
        folder = fetched(fetch(REPO, tmp_path, hub.endpoint))
        assert (folder / "model.safetensors").read_bytes() == LARGE["model.safetensors"]
        starts = [int(asked.removeprefix("bytes=").rstrip("-")) for _, asked in hub.ranges]
        assert len(starts) == 2
        assert 10 << 20 < starts[0] < starts[1]
        assert names_in(folder) == {*FILES, *LARGE}
