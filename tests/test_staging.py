"""Writes that are whole or not there: taken places, other writers, what a killed one left, wrong modes."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chuan.staging import check_free, is_partial, staged_file, staged_folder
from tests.support.loading import refusal


def write(target: Path, kind: str = "folder") -> None:
    with staged_folder(target) if kind == "folder" else staged_file(target) as temporary:
        path = temporary / "a" if kind == "folder" else temporary
        path.write_text("new")


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_it_appears_whole_with_plain_modes(tmp_path: Path, kind: str):
    target = tmp_path / "deep" / "er" / "target"
    write(target, kind)
    path = target / "a" if kind == "folder" else target
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in target.parent.iterdir()] == ["target"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_an_exception_leaves_nothing(tmp_path: Path, kind: str):
    with (
        pytest.raises(ZeroDivisionError),
        staged_folder(tmp_path / "t") if kind == "folder" else staged_file(tmp_path / "t"),
    ):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_disk_error_is_one_line(tmp_path: Path):
    def fail() -> None:
        with staged_folder(tmp_path / "t"):
            raise OSError(28, "No space left on device")

    reason = "No space left on device; nothing is left of it, free some space and try again"
    assert refusal(fail) == f"{tmp_path}/t was not written: {reason}"


HELD = """
import signal, sys
from pathlib import Path
from chuan.staging import staged_folder
with staged_folder(Path(sys.argv[1])) as temporary:
    (temporary / "half").write_text("old")
    (temporary / "deep").mkdir()
    print("writing", flush=True)
    signal.pause()
"""


def test_another_writer_is_waited_for_and_a_killed_one_cleared_away(tmp_path: Path):
    target = tmp_path / "t"
    with subprocess.Popen([sys.executable, "-c", HELD, str(target)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        assert f"another process is writing {target}" in refusal(write, target)
        assert (tmp_path / ".t.partial" / "half").read_text() == "old"  # left alone
        process.send_signal(signal.SIGKILL)
    assert not target.exists()
    assert is_partial(tmp_path / ".t.partial")
    write(target)
    assert sorted(os.listdir(target)) == ["a"]
    assert os.listdir(tmp_path) == ["t"]


def test_a_link_in_the_place_of_the_temporary_folder_is_not_followed(tmp_path: Path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_text("1")
    for leads_to in (victim, tmp_path / "nowhere", victim / "precious"):
        link = tmp_path / ".t.partial"
        link.symlink_to(leads_to)
        assert f"{link} is a link or a file, where a folder is needed; remove it" == refusal(write, tmp_path / "t")
        link.unlink()
    assert (victim / "precious").read_text() == "1"
    assert sorted(os.listdir(tmp_path)) == ["victim"]


@pytest.mark.parametrize("name", ["x" * 300, "x" * 250, "a\udcff", "file/x", "dangling/x", "loop/x", "loop"])
def test_names_that_cannot_be_written_are_one_line(tmp_path: Path, name: str):
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(os.listdir(tmp_path))
    message = refusal(lambda: (check_free(tmp_path / name), write(tmp_path / name)))
    assert any(words in message for words in ("cannot be written: ", "is there already, a link", "is not UTF-8"))
    assert sorted(os.listdir(tmp_path)) == before


def test_only_a_full_disk_asks_for_space(tmp_path: Path):
    def fail(number: int) -> None:
        with staged_folder(tmp_path / "t"):
            raise OSError(number, os.strerror(number))

    assert "free some space" in refusal(fail, errno.EDQUOT)
    assert "free some space" not in refusal(fail, errno.EIO)


def test_free_places(tmp_path: Path):
    check_free(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    check_free(tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name, reason in (("file", "no folder"), ("dangling", "leads nowhere"), (".", "not empty")):
        assert "is there already" in refusal(check_free, tmp_path / name)
        assert reason in refusal(check_free, tmp_path / name)


@pytest.mark.parametrize("name", [".model.partial", ".model.partial/m.gguf"])
def test_leftovers_are_known_by_name(tmp_path: Path, name: str):
    assert is_partial(tmp_path / name)
    assert not is_partial(tmp_path / name.lstrip("."))
