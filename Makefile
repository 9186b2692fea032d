# Two commands are enough: `make demo` and `make test`. Each target makes what it needs; after the first install all of
# them work offline.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PY     := $(BIN)/python
STAMP  := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
PORT   ?= 8000

.PHONY: help demo test check bench docs format lint types contracts clean constraints
.DEFAULT_GOAL := help

help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Flotta needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ..."
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(BENCH_STAMP): $(STAMP)
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,bench]'
	@touch $@

test: $(STAMP) ## every test that this machine can run; says what it skips and why
	$(PY) -m pytest

check: lint types contracts docs ## ruff, mypy --strict, import contracts, documentation

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

contracts: $(STAMP)
	$(BIN)/lint-imports

docs: $(STAMP) ## the documentation, as HTML in docs/_build
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html

format: $(STAMP) ## put the code into its form
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean: ## remove what the targets made (not .flotta/, which holds data)
	rm -rf $(VENV) docs/_build build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
