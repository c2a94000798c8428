# Two commands do everything: `make quickstart` and `make test`. Both build .venv first when it is missing.
PYTHON ?= python3
BIN := .venv/bin
FAST := tests/test_floors.py tests/test_language.py tests/test_config.py tests/test_objectives.py tests/transforms tests/report \
	tests/data/formats tests/data/custom/test_folder.py tests/tasks/test_answers.py tests/models/test_attention.py

.PHONY: install quickstart test test-fast test-all lint coverage docs wheel-test clean
.DELETE_ON_ERROR:

install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "evle needs Python >= 3.11: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

quickstart: install
	$(BIN)/evle train quickstart

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What a contributor runs after each edit: under a minute.
test-fast: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 $(FAST)

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

test-all: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m 'slow or not slow'

coverage: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --cov=evle --cov-report=term:skip-covered

# The site, with the API reference from docstrings, into site/. A warning is an error.
docs: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	rm -rf .cache site
	$(BIN)/zensical build --strict

# The wheel in an empty environment, away from the checkout: installed, imported, and the README's first commands.
wheel-test: install
	rm -rf build/wheel-test && mkdir -p build/wheel-test
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel-test .
	$(PYTHON) -m venv build/wheel-test/env
	build/wheel-test/env/bin/python -m pip install --quiet --disable-pip-version-check build/wheel-test/*.whl
	cd build/wheel-test && env/bin/evle --version && env/bin/evle recipes >/dev/null
	cd build/wheel-test && env/bin/evle train quickstart stages.pretrain.train.steps=4 train.steps=4 data.train.count=640 \
		data.test.count=64 tokenizer.samples=200 evaluate.num_workers=0 train.num_workers=0
	cd build/wheel-test && env/bin/python -c "import evle; print(evle.VQAPipeline('runs/quickstart/vqa-pretrained'))"

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
