# Python 3.11 or newer and make are all that must be there; `make setup` brings the rest into .venv.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
WORKERS ?= 3
export UV_SYSTEM_CERTS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-sigstop sim sim-marks test-sim lint format types check wheel-test upstream bench \
	notebooks recording schema lock clean

help: ## show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(VENV)/.installed ## install everything into .venv

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "holdfast needs Python 3.11 or newer; say which: make setup PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check uv
	$(PY) -m uv pip sync --quiet --python $(PY) requirements.lock
	$(PY) -m uv pip install --quiet --python $(PY) --no-deps --editable .
	@touch $@

demo: setup ## watch a governed run: agents, budget, an approval, a worker killed in the middle, one refund
	$(PY) -m holdfast demo

test: setup ## run the tests on an embedded Postgres, and then the simulation, which wants both cores
	$(PY) -m pytest -n $(WORKERS) --dist worksteal -m "not slow" --ignore tests/simulation
	$(PY) -m pytest tests/simulation

test-fast: setup ## run the tests that need no database
	$(PY) -m pytest tests/unit tests/contracts

test-sigstop: setup ## stop a worker past its lease and let it go on, 200 times (SIGSTOP_TRIES)
	$(PY) -m pytest tests/acceptance/test_sigstop.py -m slow

sim: setup ## random faults over real processes: SECONDS=60, from SEED= on, SCHEDULES= at most, KEEP= for what went wrong
	PYTHONPATH=tests $(PY) -m simulation.simulate --seconds $(or $(SECONDS),60) $(if $(SEED),--seed $(SEED)) \
		$(if $(SCHEDULES),--schedules $(SCHEDULES)) $(if $(KEEP),--keep $(KEEP)) $(if $(MUTANT),--mutant $(MUTANT))

test-sim: setup ## the part of the tests that simulates: random schedules, a crash at every mark, each defence missed
	$(PY) -m pytest tests/simulation

sim-marks: setup ## a crash at every mark, one at a time, of the refund desk and of a fan-out graph
	PYTHONPATH=tests $(PY) -m simulation.simulate --marks $(if $(KEEP),--keep $(KEEP))

lint: setup ## check style, floors and spelling
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports --no-cache
	$(PY) -m codespell_lib .

format: setup ## put the code into its form
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

types: setup ## check the types, strictly
	$(PY) -m mypy

check: lint types test wheel-test ## all that CI runs, in the same order

wheel-test: setup ## run what packaging can break against the built wheel, outside the checkout
	$(PY) tests/wheel.py

upstream: setup ## run LangGraph's own tests on our saver: LANGGRAPH=its checkout, MODE=ours, theirs or governed
	$(PY) tests/upstream/run.py $(LANGGRAPH) $(or $(MODE),ours)

bench: setup ## measure, side by side with the alternatives
	$(PY) -m benchmarks

notebooks: setup ## execute the notebooks
	$(PY) -m pytest tests/acceptance/test_notebook.py

recording: setup ## record this version for the tests of later ones, at a release
	$(PY) tests/recordings/record.py

schema: setup ## write docs/schema.sql, the schema after all migrations, anew
	$(PY) tests/schema.py

lock: setup ## resolve the dependencies anew
	$(PY) -m uv pip compile pyproject.toml --all-extras --group dev --universal --generate-hashes --no-emit-index-url \
		--upgrade --custom-compile-command "make lock" --quiet --output-file requirements.lock

clean: ## remove what was installed and built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
