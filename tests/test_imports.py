"""The rules of the house, walked with ast."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "chuan"
FILES = sorted(SOURCE.rglob("*.py"))
# Who may import whom: a package sees its own and every tier before it.
TIERS = [
    {"errors"},
    {"units", "recipes", "sequences"},
    {"staging", "json_file"},
    {"model", "tokenizer", "quantization", "tasks"},
    {"chat", "checkpoints", "corpus"},
    {"inference"},
    {"terminal", "training", "evaluation", "serving", "integrations"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, tier in enumerate(TIERS) for name in tier}


def package_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_packages(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    return {module.split(".")[1] for module in modules if module.startswith("chuan.")}


def name(path: Path) -> str:
    return str(path.relative_to(SOURCE))


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "__init__.py"], ids=name)
def test_imports_run_one_way(path: Path):
    own = package_of(path)
    for other in imported_packages(path) - {own}:
        assert RANK[other] < RANK[own], f"{name(path)} imports chuan.{other}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_are_at_the_top(path: Path):
    if path.name == "cli.py":
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = [
        node for function in functions for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert not inside, f"{name(path)}:{inside[0].lineno}"
    assert not [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Try) and any(isinstance(n, ast.Import | ast.ImportFrom) for n in node.body)
    ]


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_and_functions_are_short_and_say_what_they_are(path: Path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{name(path)} does not say what it is"
    assert len(text.splitlines()) <= 400, name(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
            assert node.end_lineno - node.lineno < 80, f"{name(path)}: {node.name}"
    if path.name == "__init__.py" and path.parent != SOURCE:
        assert len(tree.body) == 1, f"{name(path)} holds more than its docstring"


HELP = """
import sys
from chuan.cli import main
sys.argv = ["chuan", "--help"]
try:
    main()
except SystemExit:
    pass
"""


@pytest.mark.parametrize("code", ["import chuan", HELP])
def test_starting_is_light(code: str):
    probe = f"{code}\nimport sys\nprint('@', [m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "@ []" in done.stdout


def test_the_public_names_are_there():
    import chuan

    for public in chuan.__all__:
        assert getattr(chuan, public).__doc__
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        _ = chuan.nothing_of_that_name
