# Two commands do everything: `make quickstart` and `make test`. Both build .venv first when it is missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install quickstart images test test-all lint clean
.DELETE_ON_ERROR:

install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "evle needs Python >= 3.11: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

quickstart: install
	$(BIN)/evle run quickstart

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

test-all: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m 'slow or not slow'

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
