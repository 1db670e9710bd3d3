"""The command line as people use it: real processes, pipes, exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from chuan.cli import app, main
from tests.support.folders import write_llama_folder

CHUAN = str(Path(sys.executable).with_name("chuan"))
ROOT = Path(__file__).parents[1]


def run(*arguments: str, stdin: bytes = b"", cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([CHUAN, *arguments], input=stdin, capture_output=True, timeout=300, cwd=cwd)


def assert_one_line(done: subprocess.CompletedProcess[bytes], *words: str) -> None:
    lines = done.stderr.decode().strip().splitlines()
    assert done.returncode == 1, done
    assert len(lines) == 1, lines
    assert all(word in lines[0] for word in words), lines
    assert done.stdout == b""


@pytest.mark.xdist_group("smollm2")
def test_make_chat_answers_paris_in_a_pipe(smollm2_path: Path):
    """The README's first line. Run where `make chat` has nothing to install."""
    stamp = ROOT / ".venv" / "chuan-installed"
    if not stamp.exists() or Path(sys.prefix) != ROOT / ".venv":
        pytest.skip("not in the .venv that make sets up")
    done = subprocess.run(
        ["make", "--silent", "chat"],
        input=b"What is the capital of France?\n",
        capture_output=True,
        cwd=ROOT,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert b"Paris" in done.stdout
    assert b"\x1b" not in done.stdout


@pytest.mark.xdist_group("smollm2")
def test_one_answer_from_stdin_and_generate(smollm2_path: Path):
    done = run("chat", "-m", "-", "--max-new-tokens", "12", stdin=b"What is the capital of France?")
    assert done.returncode == 0, done.stderr
    assert b"Paris" in done.stdout
    assert done.stderr == b""
    done = run("generate", str(smollm2_path), "The capital of France is", "--max-new-tokens", "4", "--temperature", "0")
    assert b"Paris" in done.stdout


@pytest.mark.xdist_group("smollm2")
def test_info_and_models_are_plain_when_piped(smollm2_path: Path):
    done = run("info", str(smollm2_path))
    assert done.returncode == 0, done.stderr
    assert b"134,515,008" in done.stdout
    assert b"\x1b" not in done.stdout
    assert b"smollm2-135m" in run("models").stdout


def test_bad_input_is_one_line_from_a_real_process():
    assert_one_line(run("chat", "-m", "-", stdin=b"\xff\xfe"), "UTF-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chat", "nothing-of-that-name", "-m", "hi"], "smollm2-135m"),
        (["chat", "./missing", "-m", "hi"], "./missing"),
        (["chat", "empty", "-m", "hi"], "config.json"),
        (["chat", ".", "-m", "hi"], "broken.gguf"),
        (["chat", "--bits", "3", "-m", "hi"], "16, 8 or 4"),
        (["convert", "missing.gguf", "out"], "missing.gguf"),
        (["convert", "broken.gguf", "out"], "broken.gguf"),
        (["convert", "broken.gguf", "broken.gguf", "--to", "gguf"], "is there already"),
        (["convert", "broken.gguf", "out", "--to", "onnx"], "llama, baichuan or gguf"),
        (["chat", "--dtype", "int3", "-m", "hi"], "int3"),
        (["chat", "--device", "toaster", "-m", "hi"], "toaster"),
        (["info", "broken.gguf"], "broken.gguf"),
        (["generate", "broken.gguf", "x"], "broken.gguf"),
    ],
)
def test_bad_input_is_one_line(arguments, words, tmp_path, monkeypatch, capfd):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(range(64)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["chuan", *arguments])
    with pytest.raises(SystemExit) as info:
        main()
    out, err = capfd.readouterr()
    assert info.value.code == 1
    assert out == ""
    assert err.startswith("chuan: ")
    assert err.count("\n") == 1
    assert words in err


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("~nosuchuser/x", "there is no home folder for '~nosuchuser/x'"),
        ("x" * 300, "File name too long"),
        ("loop/x", "stands where a folder is needed"),
        ("loop", "a link that leads nowhere"),
        ("file", "no folder"),
        ("a\udcff", "is not UTF-8"),
        ("[/x]\x1b[31m/model/y", "lies inside of the source"),
        ("", "is there already and not empty"),
    ],
)
def test_convert_refuses_odd_targets_in_one_line(target: str, words: str, tmp_path: Path, monkeypatch, capfd):
    source = tmp_path / "[/x]\x1b[31m" / "model"
    write_llama_folder(source)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("x")
    capfd.readouterr()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["chuan", "convert", str(source), target])
    with pytest.raises(SystemExit) as info:
        main()
    out, err = capfd.readouterr()
    assert (info.value.code, out, err.count("\n")) == (1, "", 1)
    assert words in err
    assert err[:-1].isprintable()


@pytest.mark.parametrize("source", ["~nosuchuser/x", "x" * 300, "loop", "loop/x", "x" * 5000, "a\0b"])
def test_odd_sources_are_one_line(source: str, tmp_path: Path, monkeypatch, capfd):
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for arguments in (["convert", source, "out"], ["info", source]):
        monkeypatch.setattr(sys, "argv", ["chuan", *arguments])
        with pytest.raises(SystemExit) as info:
            main()
        out, err = capfd.readouterr()
        assert (info.value.code, out, err.count("\n")) == (1, "", 1)


def test_convert_takes_odd_names_and_the_folder_it_is_in(tmp_path: Path, monkeypatch, capfd):
    source = tmp_path / "m[bold] 百川"
    write_llama_folder(source)
    monkeypatch.chdir(source)
    for target in ("o[/y]", "-", "百 川", "q.gguf"):
        monkeypatch.setattr(sys, "argv", ["chuan", "convert", ".", f"../out/{target}"])
        with pytest.raises(SystemExit) as info:
            main()
        assert info.value.code == 0, capfd.readouterr().err
        assert f"../out/{target} " in capfd.readouterr().out
    card = (tmp_path / "out" / "-" / "README.md").read_text()
    assert "\n# m[bold] 百川, converted by Chuan\n" in card


def test_help_page_has_every_command_and_option():
    """docs/cli.md is generated (`make docs`); this finds it stale."""
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for name, command in typer.main.get_command(app).commands.items():
        assert f"## `chuan {name}`" in page
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else []:
                if option != "--help":
                    assert option in page, f"make docs: {option} of {name} is missing"
