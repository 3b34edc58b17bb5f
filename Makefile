# Everything sets itself up: on a machine with Python >= 3.11 and make, `make demo` and `make test` are enough.
#   make demo [SEEDS=5]   the demo, into results/demo        make test    the test suite
#   make proofs           try to break every theorem (50 s)  make fuzz    1,000,000 matrices against rationals (resumable)
#   make benchmark        Lipschitz bounds beside other tools' (hours, resumable), into results/lipschitz
#   make studies [SEEDS=5]  the paper's experiments (an hour, resumable), into results/studies and experiments/RESULTS.md
#   make smoke               every study in seconds, with its report
#   make lint | types | doctest | imports | check (all)      make clean   remove .venv and caches

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
SEEDS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
STARTED := $(VENV)/.installing
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# one thread a process: the tests run in processes, and threads on top of them lose
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: help install demo readme benchmark studies smoke test proofs fuzz lint types doctest imports check clean

help:
	@sed -n 's/^#   //p' Makefile

install: $(STAMP)

# The stamp is written last. $(STARTED) exists only while pip runs: a set-up that finds it was cut off, possibly with a
# package half unpacked, and starts from an empty environment. Without it the environment is kept and brought up to date
# (after a change of pyproject.toml, or one that was made by hand), unless its interpreter or pip does not run.
# auto-lirpa goes in alone and without its pins, which forbid every current torch (see pyproject.toml).
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "certbound needs Python >= 3.11, and $(PYTHON) is: $$($(PYTHON) --version 2>&1). Fix: make PYTHON=python3.11" >&2; \
	  exit 1; }
	@if [ -e $(STARTED) ] || ! { $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    && $(BIN)/python -m pip --version; } >/dev/null 2>&1; then \
	  echo "making $(VENV)"; $(PYTHON) -m venv --clear $(VENV); fi
	@rm -f $(STAMP)
	@touch $(STARTED)
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps auto-lirpa==0.3
	@rm -f $(STARTED)
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/certbound demo --out results/demo --seeds $(or $(SEEDS),1)

readme: $(STAMP)
	$(BIN)/python docs/update_readme.py

benchmark: $(STAMP)
	$(PIP) 'eclipse-nn>=0.1.7'
	$(BIN)/python -m benchmarks.lipschitz --out results/lipschitz

studies: $(STAMP)
	$(BIN)/python -m experiments run all --scale cpu --seeds $(or $(SEEDS),5) --jobs 2 --out results/studies
	$(BIN)/python -m experiments report all --scale cpu --out results/studies
	$(BIN)/python -m experiments results --from results/studies --into experiments

smoke: $(STAMP)
	$(BIN)/python -m experiments run all --smoke --seeds 1 --jobs 2 --out results/smoke --fresh --quiet
	$(BIN)/python -m experiments report all --smoke --out results/smoke

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

# first whether the searches can win, then whether they do
proofs: $(STAMP)
	$(BIN)/python -m proofs_numeric --self-test
	$(BIN)/python -m proofs_numeric

fuzz: $(STAMP)
	$(BIN)/python tests/campaign run --matrices 1000000 --jobs 2 --out results/campaign

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/basedpyright

doctest: $(STAMP)
	$(BIN)/python -m pytest --doctest-modules certbound

imports: $(STAMP)
	$(BIN)/lint-imports --no-cache

check: test smoke proofs lint types doctest imports

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .coverage htmlcov build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
