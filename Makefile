# Everything a newcomer needs: `make chat`, `make test`. Each sets up its own .venv first; second runs start at once.
PYTHON ?= python3
BIN := .venv/bin
MODEL ?= smollm2-135m

.PHONY: chat test test-slow verify lint format docs clean

chat: .venv/chuan-installed
	@$(BIN)/chuan chat $(MODEL)

# Two workers with one thread each: two workers with two fight for the cores of a small machine.
test: .venv/dev-installed
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow"

test-slow: .venv/dev-installed
	@$(BIN)/python -m pytest -m slow

# By hand: the full-size measurements of docs/benchmarks.md (20 GB of disk, about twenty minutes).
verify: .venv/dev-installed
	$(BIN)/python benchmarks/full_size_chat.py

lint: .venv/dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/dev-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/dev-installed
	$(BIN)/python docs/build_cli_page.py

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info

.venv/bin/python:
	@$(PYTHON) -m venv .venv

# pip talks on stderr, so that an answer piped out of `make chat` stays clean.
.venv/chuan-installed: pyproject.toml | .venv/bin/python
	@echo "Setting up .venv (the first time only, some minutes)..." >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . >&2
	@touch $@

.venv/dev-installed: pyproject.toml | .venv/bin/python
	@echo "Setting up .venv with the developers' tools (the first time only, some minutes)..." >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]" >&2
	@touch .venv/chuan-installed $@
