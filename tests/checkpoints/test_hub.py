"""Downloads from a real server on loopback, by the real hub library, each in a new process (HF_* is read at import)."""

import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chuan.checkpoints.hub import DESCRIPTIONS, choose_weights, is_wanted, list_whole_weights, require_space
from chuan.errors import ChuanError
from tests.support.hub_server import HubServer

FILES = {
    "config.json": b"{}",
    "generation_config.json": b"{ }",
    "tokenizer.model": b"spm",
    "README.md": b"# a model",
    "LICENSE": b"ours",
    "Baichuan2 模型社区许可协议.pdf": b"%PDF",
    "Community License for Baichuan2 Model.pdf": b"%PDF",
}
OTHERS = {
    "modeling_baichuan.py": b"raise SystemExit('executed')",
    "LICENSE.py": b"raise SystemExit('executed')",
    "state.pkl": b"pickle",
    "model.pt": b"pickle",
    "onnx/model.onnx": b"onnx",
    "onnx/model.safetensors": b"other",
    "onnx/LICENSE": b"other",
}
BIN = {"pytorch_model.bin": b"pickle", "training_args.bin": b"pickle"}
SAFE = {"model.safetensors": b"safe"}
LARGE = {"model.safetensors": random.Random(0).randbytes(36 << 20)}
REPO = "someone/model"

CODE = """
import sys
from chuan.checkpoints.catalogue import resolve_model
from chuan.errors import ChuanError
weights, *names = sys.argv[1:]
for name in names:
    try:
        print(resolve_model(name, weights=weights == "True"))
    except ChuanError as error:
        print("refused: " + str(error), file=sys.stderr)
        if name == names[-1]:
            sys.exit(1)
"""


def start(name: str, home: Path, endpoint: str, weights: bool = True, **environment: str) -> subprocess.Popen[str]:
    return start_process(name, home, weights, {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, **environment})


def start_process(name: str, home: Path, weights: bool, settings: dict[str, str]) -> subprocess.Popen[str]:
    """Resolves a name in a new process, with no proxy between it and a hub on loopback."""
    inherited = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    return subprocess.Popen(
        [sys.executable, "-c", CODE, str(weights), *name.split(" ")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**inherited, "XDG_CACHE_HOME": str(home / "xdg"), **settings},
    )


def fetch(name: str, home: Path, endpoint: str, weights: bool = True, **environment: str):
    child = start(name, home, endpoint, weights, **environment)
    out, err = child.communicate(timeout=60)
    return subprocess.CompletedProcess(child.args, child.returncode, out, err)


def fetched(done: subprocess.CompletedProcess[str]) -> Path:
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    lines = [line for line in done.stderr.splitlines() if line.startswith("refused: ")]
    assert done.returncode == 1, done.stderr
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in lines[0] for word in words), lines


def assert_each_refused(done: subprocess.CompletedProcess[str], expected: dict[str, list[str]]) -> None:
    lines = done.stderr.splitlines()
    assert len(lines) == len(expected), done.stderr
    for line, words in zip(lines, expected.values(), strict=True):
        assert line.startswith("refused: "), done.stderr
        assert all(word in line for word in words), (line, words)


@pytest.mark.parametrize(("weights", "wanted"), [(SAFE | BIN, "model.safetensors"), (BIN, "pytorch_model.bin")])
def test_only_data_is_fetched_and_safetensors_are_preferred(tmp_path, weights, wanted):
    with HubServer({REPO: FILES | OTHERS | weights}) as hub:
        done = fetch(REPO, tmp_path, hub.endpoint)
        folder = fetched(done)
        assert names_in(folder) == {*FILES, wanted}
        assert (folder / wanted).read_bytes() == weights[wanted]
        assert not [
            path for path in hub.requests if ".py" in path or "onnx" in path or ".p" in path.replace(".pdf", "")
        ]
        assert done.stderr == ""  # piped, there are no progress bars


def test_a_second_run_works_offline_and_without_the_hub(tmp_path):
    with HubServer({REPO: FILES | SAFE}) as hub:
        first = fetched(fetch(REPO, tmp_path, hub.endpoint))
        asked = len(hub.requests)
        assert fetched(fetch(REPO, tmp_path, hub.endpoint, HF_HUB_OFFLINE="1")) == first
        assert len(hub.requests) == asked
        assert fetched(fetch(REPO, tmp_path, hub.endpoint)) == first
        assert len(hub.requests) == asked + 1  # what the newest revision is
    assert fetched(fetch(REPO, tmp_path, hub.endpoint)) == first


def test_without_weights_none_are_fetched(tmp_path):
    with HubServer({REPO: FILES | OTHERS | SAFE | BIN}) as hub:
        folder = fetched(fetch(REPO, tmp_path, hub.endpoint, weights=False))
        assert names_in(folder) == set(FILES)
        assert_refused(fetch(REPO, tmp_path, hub.endpoint, HF_HUB_OFFLINE="1"), "cannot be reached")
        assert names_in(fetched(fetch(REPO, tmp_path, hub.endpoint))) == {*FILES, *SAFE}


def test_shards_come_together(tmp_path):
    shards = {f"model-{i:05}-of-00003.safetensors": b"%d" % i for i in (1, 2, 3)}
    index = {"model.safetensors.index.json": json.dumps({"weight_map": dict(zip("abc", shards, strict=True))}).encode()}
    with HubServer({REPO: FILES | shards | index | {"model.fp16.safetensors": b"a variant"}}) as hub:
        folder = fetched(fetch(REPO, tmp_path, hub.endpoint))
        assert names_in(folder) == {*FILES, *shards, *index}
        (folder / "model-00002-of-00003.safetensors").unlink()
        assert_refused(fetch(REPO, tmp_path, hub.endpoint, HF_HUB_OFFLINE="1"), "cannot be reached")
        del hub.repositories[REPO]["model-00002-of-00003.safetensors"]
        assert_refused(fetch(REPO, tmp_path / "new", hub.endpoint), "lacks model-00002-of-00003.safetensors")


def test_a_revision(tmp_path):
    with HubServer({REPO: FILES | SAFE, f"{REPO}@v1.0": FILES | {"model.safetensors": b"older"}}) as hub:
        folder = fetched(fetch(f"{REPO}@v1.0", tmp_path, hub.endpoint))
        assert (folder / "model.safetensors").read_bytes() == b"older"
        newest = fetched(fetch(REPO, tmp_path, hub.endpoint))
        assert (newest / "model.safetensors").read_bytes() == b"safe"
        assert fetched(fetch(f"{REPO}@{folder.name}", tmp_path, hub.endpoint, HF_HUB_OFFLINE="1")) == folder


def test_what_cannot_be_had_is_one_line(tmp_path):
    ggufs = {"m.Q4_0.gguf": b"", "m.Q8_0.gguf": b""}
    expected = {
        "someone/other": ["someone/other", "check the id"],
        "someone/x--y": ["no hub id", "someone/x--y"],
        f"{REPO}@v9": ["no revision 'v9'"],
        "a/gguf": ["m.Q4_0.gguf, m.Q8_0.gguf", "download one"],
        "a/none": ["no weights"],
    }
    with HubServer({REPO: FILES | SAFE, "a/gguf": FILES | ggufs, "a/none": FILES}) as hub:
        assert_each_refused(fetch(" ".join(expected), tmp_path, hub.endpoint), expected)
        assert_refused(fetch(REPO, tmp_path / "x", hub.endpoint, HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE")
    assert_refused(fetch(REPO, tmp_path / "y", hub.endpoint), "cannot be reached")


def test_what_the_hub_answers_is_one_line(tmp_path):
    bad_token = {"X-Error-Message": "Invalid credentials in Authorization header"}
    answers = {
        "a/private": (401, {"X-Error-Code": "RepoNotFound"}, ["private", "hf auth login"]),
        "a/token": (401, bad_token, ["token", "hf auth login"]),
        "a/gated": (403, {"X-Error-Code": "GatedRepo"}, ["permission", "hf auth login"]),
        "a/forbidden": (403, {}, ["refuses", "ask for access"]),
        "a/unknown": (404, {}, ["check the id"]),
        "a/often": (429, {"Retry-After": "0"}, ["wait", "HF_TOKEN", "HF_ENDPOINT"]),
        "a/fault": (500, {}, ["fault (500)", "later"]),
        "a/busy": (503, {}, ["fault (503)", "later"]),
    }
    with HubServer({}) as hub:
        hub.faults.statuses = {f"api/models/{name}": answer[:2] for name, answer in answers.items()}
        done = fetch(" ".join(answers), tmp_path, hub.endpoint)
        assert_each_refused(done, {name: [name, *answer[2]] for name, answer in answers.items()})


def test_a_file_that_is_refused_is_one_line_and_comes_later(tmp_path):
    with HubServer({REPO: FILES | SAFE}) as hub:
        hub.faults.statuses["stored/model.safetensors"] = (500, {})
        assert_refused(fetch(REPO, tmp_path, hub.endpoint), "fault (500)")
        hub.faults.statuses.clear()
        assert names_in(fetched(fetch(REPO, tmp_path, hub.endpoint))) == {*FILES, *SAFE}


def test_a_connection_that_breaks_goes_on_where_it_broke_at_once_or_in_the_next_run(tmp_path):
    with HubServer({REPO: FILES | LARGE}) as hub:
        hub.faults.cut_after["model.safetensors"] = [12 << 20] + [1000] * 6
        assert_refused(fetch(REPO, tmp_path, hub.endpoint), "connection", "run again")
        again = ("model.safetensors", f"bytes={10 << 20}-")  # the library writes ten megabytes at a time
        assert hub.ranges == [again] * 5
        hub.faults.cut_after.clear()
        folder = fetched(fetch(REPO, tmp_path, hub.endpoint))
        assert (folder / "model.safetensors").read_bytes() == LARGE["model.safetensors"]
        assert hub.ranges == [again] * 6


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.model", "config.json"])
def test_wrong_bytes_are_found_removed_and_fetched_again(tmp_path, name):
    with HubServer({REPO: FILES | SAFE}) as hub:
        hub.faults.wrong.add(name)
        assert_refused(fetch(REPO, tmp_path, hub.endpoint), f"wrong bytes for {name}", "removed", "try again")
        blobs = tmp_path / "hub" / "models--someone--model" / "blobs"
        assert not [blob for blob in blobs.iterdir() if blob.read_bytes() == bytes(len((FILES | SAFE)[name]))]
        hub.faults.wrong.clear()
        folder = fetched(fetch(REPO, tmp_path, hub.endpoint))
        assert {file: (folder / file).read_bytes() for file in FILES | SAFE} == FILES | SAFE


def test_a_cache_of_another_tool_is_hashed_once_also_offline(tmp_path):
    with HubServer({REPO: FILES | SAFE}) as hub:
        folder = fetched(fetch(REPO, tmp_path, hub.endpoint))
    blob = (folder / "model.safetensors").resolve()
    status = blob.stat()
    blob.write_bytes(b"evil")
    os.utime(blob, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fetched(fetch(REPO, tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1")) == folder  # not hashed again
    os.utime(blob)
    assert_refused(fetch(REPO, tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1"), "wrong bytes", "removed")
    assert not blob.exists()
    assert_refused(fetch(REPO, tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1"), "not in the cache")


def test_a_killed_download_goes_on_and_never_leaves_a_half(tmp_path):
    content = LARGE["model.safetensors"]
    with HubServer({REPO: FILES | LARGE}) as hub:
        hub.faults.seconds_per_block = 0.02
        for moment in (0, 1 << 20, 13 << 20, 12 << 20):
            before = hub.sent.get("model.safetensors", 0)
            child = start(REPO, tmp_path, hub.endpoint)
            wait_for(lambda m=moment, b=before: hub.sent.get("model.safetensors" if m else "", 0) - b >= m)
            child.send_signal(signal.SIGKILL)
            child.communicate()
            for folder in (tmp_path / "hub" / "models--someone--model").glob("snapshots/*"):
                assert list_whole_weights(folder) == []
        hub.faults.seconds_per_block = 0
        assert_refused(fetch(REPO, tmp_path, hub.endpoint, HF_HUB_OFFLINE="1"), "cannot be reached")
        folder = fetched(fetch(REPO, tmp_path, hub.endpoint))
        assert (folder / "model.safetensors").read_bytes() == content
        assert hub.ranges[-1][1] in (f"bytes={10 << 20}-", f"bytes={20 << 20}-")
        assert not list((folder.parents[1] / "blobs").glob(hashlib.sha256(content).hexdigest() + "*.incomplete"))


@pytest.mark.slow
def test_ten_kills_at_random_moments(tmp_path):
    content, rng = LARGE["model.safetensors"], random.Random(0)
    with HubServer({REPO: FILES | LARGE}) as hub:
        hub.faults.seconds_per_block = 0.05
        for _ in range(10):
            before, moment = hub.sent.get("model.safetensors", 0), rng.randrange(3 << 20)
            child = start(REPO, tmp_path, hub.endpoint)
            wait_for(lambda b=before, m=moment: hub.sent.get("model.safetensors", 0) - b > m)
            child.send_signal(signal.SIGKILL)
            child.communicate()
            for folder in (tmp_path / "hub" / "models--someone--model").glob("snapshots/*"):
                assert list_whole_weights(folder) == []
        assert hub.sent["model.safetensors"] > 0
        hub.faults.seconds_per_block = 0
        folder = fetched(fetch(REPO, tmp_path, hub.endpoint))
        assert (folder / "model.safetensors").read_bytes() == content


def wait_for(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_two_at_once_fetch_it_once(tmp_path):
    with HubServer({REPO: FILES | LARGE}) as hub:
        hub.faults.seconds_per_block = 0.02
        children = [start(REPO, tmp_path, hub.endpoint) for _ in range(2)]
        answers = [child.communicate(timeout=60) for child in children]
        assert answers[0][0] == answers[1][0], answers
        assert hub.sent["model.safetensors"] == len(LARGE["model.safetensors"])


def test_a_full_disk_is_one_line(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with HubServer({REPO: FILES | LARGE}) as hub:
        resource.setrlimit(resource.RLIMIT_FSIZE, (15 << 20, limit[1]))
        try:
            child = start(REPO, tmp_path, hub.endpoint)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        out, err = child.communicate(timeout=60)
        assert_refused(subprocess.CompletedProcess([], child.returncode, out, err), "could not be stored", "HF_HOME")
        assert (fetched(fetch(REPO, tmp_path, hub.endpoint)) / "model.safetensors").is_file()
    with pytest.raises(ChuanError, match="GB more are needed.*make room, or set HF_HOME"):
        require_space(tmp_path, 1 << 60, "HF_HOME")


@pytest.mark.parametrize("name", ["a.py", "LICENSE.py", "a/LICENSE", "model.pt", "x.pkl", "..\\model.safetensors"])
def test_what_is_never_wanted(name):
    assert not is_wanted(name, ["*"])


@pytest.mark.parametrize("name", ["LICENSE", "license.txt", "licence.md", "COPYING", "USE_POLICY.md", "NOTICE"])
def test_licences_are_wanted(name):
    assert is_wanted(name, DESCRIPTIONS)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["pytorch_model.bin", "model.safetensors.index.json"], ["pytorch_model.bin"]),
        (["model-1.safetensors", "model.safetensors.index.json"], ["model.safetensors.index.json"]),
        (["model-1.safetensors", "model.safetensors", "model.safetensors.index.json"], ["model.safetensors"]),
    ],
)
def test_which_weights_are_chosen(names, chosen):
    assert choose_weights(names, REPO) == chosen


@pytest.mark.parametrize("index", ["{}", "[]", "{", '{"weight_map": {"a": "../../etc/passwd"}}', '{"weight_map": []}'])
def test_a_broken_index_is_one_line(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ChuanError, match="model.safetensors.index.json"):
        list_whole_weights(tmp_path)


def test_shards_without_an_index_are_not_whole(tmp_path):
    (tmp_path / "pytorch_model-00001-of-00002.bin").touch()
    assert list_whole_weights(tmp_path) == []
