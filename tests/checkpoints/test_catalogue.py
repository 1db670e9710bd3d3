from pathlib import Path

import pytest

from chuan.checkpoints.catalogue import CATALOGUE, resolve_model
from chuan.errors import ChuanError


def test_a_path_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-135m").mkdir()
    assert resolve_model("smollm2-135m") == Path("smollm2-135m")


def test_folders_and_files_are_found(tmp_path: Path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"")
    assert resolve_model(tmp_path) == tmp_path
    assert resolve_model(str(file)) == file


@pytest.mark.parametrize("name", ["./gone", "/gone/away", "~/gone-for-good", "gone.gguf", "a/b/gone"])
def test_a_path_that_is_not_there_says_so(name: str):
    with pytest.raises(ChuanError, match="check the path") as info:
        resolve_model(name)
    assert name in str(info.value)


@pytest.mark.parametrize("name", ["gpt-5", "", "two words", "a/b c", "x\ny"])
def test_an_unknown_name_lists_what_there_is(name: str):
    with pytest.raises(ChuanError) as info:
        resolve_model(name)
    assert all(known in str(info.value) for known in CATALOGUE)
    assert "\n" not in str(info.value)
