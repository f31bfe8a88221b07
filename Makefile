# make demo   install, and convert, verify, fold and score the digits run
# make test   install what tests need, check types and style, run all tests
# make check  types and style alone
# make quick  the tests without whole models
# make fuzz   thousands of damaged files; ARGS="--only KIND:SEED" for one of them
# make test-long   all tests, the long ones too, which do not fit the time of continuous integration

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-long check quick fuzz clean

demo: $(VENV)/.demo
	PATH="$(abspath $(BIN)):$$PATH" sh examples/01_digits/demo.sh

test: check
	$(BIN)/python -m pytest --numprocesses auto -m "not long"

test-long: check
	$(BIN)/python -m pytest --numprocesses auto

quick: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses auto -m "not slow and not long"

fuzz: $(VENV)/.dev
	$(BIN)/python benchmarks/fuzz.py $(or $(ARGS),--results benchmarks/results/fuzz.md)

check: $(VENV)/.dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable ".[demo]"
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
