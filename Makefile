# make setup   .venv with pinned packages          make demo    the main job on the lake that ships with gpumatch
# make test    the tests                           make check   lint, types, layers, Dockerfile, scripts
# make container-check   what the CPU image holds and runs, without a container engine (docs/CONTAINER.md)
# make coverage   how much of the code they run, branches too
# make bench   every benchmark, tables into bench/results/
SHELL := /bin/bash
.DELETE_ON_ERROR:
# A bare checkout has kernels/ and cache/ at its root; safe path keeps them from shadowing packages of those names.
export PYTHONSAFEPATH = 1
export HF_HUB_OFFLINE = 1

PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys, venv; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

.PHONY: setup demo test container-check coverage check fix bench clean

setup: .venv/.ready

# What is never imported need not be compiled, which takes pip as long as all the rest.
.venv/.ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "gpumatch needs Python 3.11 or 3.12 with venv; set PYTHON=/path/to/python3.11"; exit 1; }
	@test -f gpumatch/kernels/__init__.py || { echo "gpumatch/kernels is no link: clone with git, not from a zip"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/gpumatch demo

# A file's tests stay in one process, which makes its fixtures once; processes with all threads each only wait. Three keep
# two cores busy, for many tests wait for a server or a kill; files with few tests can be the slowest, and do not come last.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder
test: setup
	$(PYTEST) $(ARGS)

# Coverage cannot see into machine code, so the kernels are tested once more as the Python that they are compiled from.
# Scalars that Python warns of (hashes overflow on purpose) are ones that machine code is silent about. A test that fails
# does not hide the figures: `make test` is there to judge.
coverage: setup
	-$(PYTEST) --cov --cov-report= $(ARGS)
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest -q -W ignore::RuntimeWarning --cov --cov-append tests/kernels

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports
	$(BIN)/hadolint --failure-threshold style Dockerfile
	$(BIN)/shellcheck docker/*.sh bench/*.sh .ci/run

container-check: setup
	PYTHON=$(PYTHON) docker/check.sh -q $(ARGS)

fix: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	PYTHONPATH=bench $(BIN)/python bench/headline.py --baseline $(ARGS)

clean:
	rm -rf .venv build dist *.egg-info runs
