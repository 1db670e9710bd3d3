"""A run from shards to a folder that other programs open; stopped, killed and damaged on the way."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import chuan
from chuan.errors import ChuanError
from chuan.training.pretrain import pretrain
from chuan.training.watch import read_log
from tests.support.tiny_run import curve, read_tiny_recipe, write_tiny_recipe
from tests.support.tiny_tokenizer import train_tiny_sentencepiece
from tests.support.torchrun import ROOT, torchrun


@pytest.fixture
def path(tmp_path) -> Path:
    return write_tiny_recipe(tmp_path)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def run_whole(path: Path, name: str, *overrides: str) -> Path:
    """A run that nothing disturbs."""
    folder = path.parent / name
    assert pretrain(read_tiny_recipe(path, f"output={folder}", *overrides)) == folder / "model"
    return folder


def start(path: Path, folder: Path, *overrides: str) -> subprocess.Popen[str]:
    """The verb, in a process that can be killed."""
    settings = [part for override in (f"output={folder}", *overrides) for part in ("--set", override)]
    return subprocess.Popen(
        [sys.executable, "-m", "chuan", "pretrain", str(path), *settings],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},  # sums of as many parts
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def assert_same_run(folder: Path, whole: Path) -> None:
    assert curve(folder) == curve(whole)
    expected = weights_of(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights_of(folder).items())


def test_the_result_is_a_llama_folder_of_everyone(path):
    folder = run_whole(path, "whole", "steps=40", "loss.normalized_head=true")
    losses = [loss for _, loss in curve(folder)]
    assert losses[-1] < 0.8 * losses[0]
    validation = [
        entry["validation_bits_per_byte"] for entry in read_log(folder) if "validation_bits_per_byte" in entry
    ]
    assert validation[-1] < validation[0]
    assert (folder / "loss.png").stat().st_size > 5000
    assert list((folder / "tensorboard").iterdir())
    ids = [10, 11, 12, 13]
    theirs = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(chuan.load(folder / "model", dtype="float32").logits(ids), theirs, rtol=1e-4, atol=1e-4)


def test_three_steps_and_three_are_six_bit_for_bit(path):
    whole = run_whole(path, "whole")
    recipe = read_tiny_recipe(path)
    assert pretrain(recipe, stop_after=3) is None
    assert not (path.parent / "run" / "model").exists()
    pretrain(recipe)
    assert_same_run(path.parent / "run", whole)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_two_ranks_then_one_then_two_end_where_one_does(path, kind):
    settings = (f"optimizer.kind={kind}", "steps=6")
    whole = run_whole(path, "whole", *settings)
    folder = path.parent / "changing"
    overrides = [part for value in (f"output={folder}", *settings[:1]) for part in ("--set", value)]
    verb = ["-m", "chuan", "pretrain", str(path), *overrides]
    for ranks, steps in ((2, 2), (1, 4), (2, 6)):
        # A constant schedule in effect: the steps to come are known from the beginning.
        done = torchrun(ranks, *verb, "--set", f"steps={steps}", "--set", 'schedule.kind="constant"')
        assert done.returncode == 0, done.stdout
    reference = run_whole(path, "constant", *settings, 'schedule.kind="constant"')
    assert curve(whole) != curve(reference)
    found, expected = (np.array(curve(run)) for run in (folder, reference))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_signal_saves_and_the_run_goes_on(path):
    whole = run_whole(path, "whole", "steps=60")
    folder = path.parent / "stopped"
    process = start(path, folder, "steps=60", "state.every=1000")
    while len(curve(folder)) < 3:
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "goes on from here" in output
    assert len(list((folder / "state").iterdir())) == 1
    assert 3 <= len(curve(folder)) < 60
    pretrain(read_tiny_recipe(path, f"output={folder}", "steps=60", "state.every=1000"))
    assert_same_run(folder, whole)


def kill_at_random(path: Path, folder: Path, kills: int, *overrides: str) -> int:
    """Kills the run again and again, every second time while a state is being written; returns how often it did."""
    chance = random.Random(1)
    done = 0
    while done < kills:
        process = start(path, folder, *overrides)
        begun = len(curve(folder)) if folder.exists() else 0
        while process.poll() is None and len(curve(folder)) <= begun + chance.randrange(2):
            time.sleep(0.01)
        if done % 2:
            while process.poll() is None and not list((folder / "state").glob(".*.partial")):
                pass
        else:
            time.sleep(chance.random() / 20)
        if process.poll() is not None:
            raise AssertionError(process.communicate()[0])
        process.kill()
        process.communicate()
        done += 1
    return done


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_9_loses_nothing(path, kills):
    steps = f"steps={20 * kills}"
    whole = run_whole(path, "whole", steps)
    folder = path.parent / "killed"
    assert kill_at_random(path, folder, kills, steps) == kills
    pretrain(read_tiny_recipe(path, f"output={folder}", steps))
    assert_same_run(folder, whole)
    assert not list((folder / "state").glob(".*"))


@pytest.mark.slow
def test_a_rank_that_is_killed_comes_back(path):
    whole = run_whole(path, "whole", "steps=60")
    folder = path.parent / "elastic"
    verb = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "2",
    ]
    settings = ["--set", f"output={folder}", "--set", "steps=60"]
    process = subprocess.Popen(
        [*verb, "-m", "chuan", "pretrain", str(path), *settings],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not folder.exists() or len(curve(folder)) < 5:
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()[0]
    psutil.Process(process.pid).children()[1].kill()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    np.testing.assert_allclose(np.array(curve(folder)), np.array(curve(whole)), rtol=1e-4)


@pytest.mark.parametrize("damage", ["flip", "cut", "marker", "missing"])
def test_a_damaged_state_is_skipped_with_a_warning(path, damage, capsys):
    whole = run_whole(path, "whole")
    recipe = read_tiny_recipe(path)
    pretrain(recipe, stop_after=4)
    newest = path.parent / "run" / "state" / "step-00000004"
    data = next(newest.glob("*.distcp"))
    if damage == "flip":
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    elif damage == "cut":
        os.truncate(data, data.stat().st_size // 2)
    elif damage == "marker":
        (newest / "complete.json").write_text("{")
    else:
        data.unlink()
    capsys.readouterr()
    pretrain(recipe)
    assert "the state of step 4 is damaged" in capsys.readouterr().out
    assert_same_run(path.parent / "run", whole)


def test_a_disk_that_fills_is_one_line_and_loses_nothing(path):
    whole = run_whole(path, "whole")
    folder = path.parent / "run"
    recipe = read_tiny_recipe(path)
    pretrain(recipe, stop_after=3)
    process = subprocess.run(
        ["sh", "-c", 'ulimit -f 200; exec "$0" "$@"', sys.executable, "-m", "chuan", "pretrain", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    lines = [line for line in process.stderr.splitlines() if line.startswith("chuan: ")]
    assert len(lines) == 1
    assert "could not be written" in lines[0]
    assert "Traceback" not in process.stderr
    pretrain(recipe)
    assert_same_run(folder, whole)


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_batch(path):
    recipe = read_tiny_recipe(path, "optimizer.learning_rate=1e30", "schedule.warmup=0")
    with pytest.raises(ChuanError, match="the loss is .*not-finite"):
        pretrain(recipe)
    (kept,) = (path.parent / "run").glob("not-finite-*-rank-0.npz")
    assert np.load(kept)["tokens"].shape == (4, 32)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rate=0", "optimizer.learning_rate"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate"),
        ("data.length=65", "more than model.max_position_embeddings"),
        ("model.vocab_size=100", "the tokenizer has 900 ids"),
        ("data.shards=/nowhere", "holds no finished token shards"),
        ("data.tokenizer=/nowhere", "has no tokenizer"),
        ("model.num_attention_heads=5", "heads"),
        ("steps=0", "steps"),
        ("optimizer.speed=3", "optimizer.speed"),
    ],
)
def test_bad_recipes_are_one_line(path, override, message):
    with pytest.raises(ChuanError, match=message) as caught:
        pretrain(read_tiny_recipe(path, override))
    assert "\n" not in str(caught.value)


def test_more_ranks_than_rows_are_refused(path):
    done = torchrun(2, "-m", "chuan", "pretrain", str(path), "--set", "batch.rows=3")
    assert done.returncode != 0
    assert "batch.rows 3 cannot be shared out evenly over 2 ranks" in done.stdout


def test_a_folder_of_another_recipe_is_refused(path):
    run_whole(path, "run")
    with pytest.raises(ChuanError, match="holds a run with optimizer.learning_rate = 0.01, not 0.02"):
        pretrain(read_tiny_recipe(path, "optimizer.learning_rate=0.02"))


def test_shards_of_another_tokenizer_are_refused(path):
    other = path.parent / "other.model"
    other.write_bytes(train_tiny_sentencepiece(seed=1))
    with pytest.raises(ChuanError, match="are not of the tokenizer"):
        pretrain(read_tiny_recipe(path, f"data.tokenizer={other}"))
