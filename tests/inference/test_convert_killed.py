"""`kill -9` inside ten writes, at random moments: nothing wrong ever opens, and the next run finishes."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.folders import write_baichuan_folder
from tests.support.tiny_tokenizer import train_tiny_sentencepiece

# One process imports everything; each attempt is a fork of it, killed after a random share of a whole run's time.
KILLER = """
import os, random, signal, shutil, sys, time
from pathlib import Path
from chuan.errors import ChuanError
from chuan.inference.convert import convert
from tests.support.loading import load_logits

source, folder = Path(sys.argv[1]), Path(sys.argv[2])
folder.mkdir()
TARGETS = [("llama", 8), ("gguf", None), ("baichuan", None), ("llama", 4)]
expected, whole = {}, {}
for to, bits in TARGETS:
    started = time.monotonic()
    convert(source, folder / "whole", to, bits)
    whole[to, bits] = time.monotonic() - started
    expected[f"{to}-{bits}"] = load_logits(folder / "whole")
    shutil.rmtree(folder / "whole")
rng = random.Random(0)
cut = attempt = 0
while cut < 10 and attempt < 200:
    to, bits = TARGETS[attempt % len(TARGETS)]
    target = folder / f"{to}-{bits}"
    child = os.fork()
    if child == 0:
        try:
            convert(source, target, to, bits)
        except ChuanError as error:
            if "is there already" not in str(error):
                print(error, flush=True)
        os._exit(0)
    time.sleep(rng.uniform(0, whole[to, bits]))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    cut += (folder / f".{target.name}.partial").exists()
    for path in [*folder.iterdir(), *folder.glob(".*/*.gguf")]:
        try:
            logits = load_logits(path)
        except ChuanError:
            assert path != target, "what has its name must open"
            continue
        assert path.parent == folder and logits.equal(expected[path.name]), path
    if target.exists():
        shutil.rmtree(target)
    if attempt % 3 == 0:
        convert(source, target, to, bits)
        assert load_logits(target).equal(expected[target.name])
        shutil.rmtree(target)
    attempt += 1
for to, bits in TARGETS:
    target = folder / f"{to}-{bits}"
    convert(source, target, to, bits)
    assert load_logits(target).equal(expected[target.name])
print("cut", cut, sorted(path.name for path in folder.iterdir()))
"""


def test_kill_9_at_random_moments(tmp_path: Path):
    write_baichuan_folder(tmp_path / "source", model_file=train_tiny_sentencepiece(dummy_prefix=False))
    command = [sys.executable, "-c", KILLER, str(tmp_path / "source"), str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    word, count, left = done.stdout.strip().split(" ", 2)
    assert word == "cut"
    assert int(count) == 10, "the moments were not in the middle of the writes"
    assert left == "['baichuan-None', 'gguf-None', 'llama-4', 'llama-8']"
