# Tripod: the two commands are `make sweep` and `make test`; `make help` lists the rest.
SUITE ?= nano
ROOT ?= runs
PYTHON ?= python3.11
BIN := .venv/bin
TORCH := $(shell grep '^torch==' requirements.lock)
TRIPOD := $(BIN)/tripod

.DEFAULT_GOAL := help
.PHONY: help setup sweep verify report test test-fast interop check bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

setup: .venv/.installed ## create .venv with the pinned packages

# Torch first and by its exact pin: any other order lets pip choose another build of it.
.venv/.installed: requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; name a Python >= 3.11: make $(MAKECMDGOALS) PYTHON=python3"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

sweep: setup ## train the ladder SUITE=nano, verify it, publish it locally, evaluate it, write the report
	$(TRIPOD) sweep $(SUITE) --root $(ROOT)

verify: setup ## recompute every digest, the order and the labels of SUITE
	$(TRIPOD) verify all $(ROOT)/$(SUITE)

report: setup ## rebuild the tables and report of SUITE
	$(TRIPOD) report $(ROOT)/$(SUITE)

# The interop tests use .venv-interop where `make interop` has made it.
INTEROP := $(wildcard .venv-interop/.installed)
# DeepSpeed is no pin of the lock (docs/deepspeed.md says how to install it): where it is not there, its tests say so.
NO_DEEPSPEED = $(shell $(BIN)/python -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('deepspeed') is None)" || echo TRIPOD_NO_DEEPSPEED=1)
test: setup ## run the tests
	@echo "$(if $(NO_DEEPSPEED),DeepSpeed is not installed: the tests of its engine are left out,the DeepSpeed engine is tested too)"
	$(if $(INTEROP),TRIPOD_TRANSFORMERS4_PYTHON=$(CURDIR)/.venv-interop/bin/python) env $(NO_DEEPSPEED) $(BIN)/python -m pytest

interop: setup .venv-interop/.installed ## load published revisions in transformers 4 as well
	TRIPOD_TRANSFORMERS4_PYTHON=$(CURDIR)/.venv-interop/bin/python $(BIN)/python -m pytest -m interop

.venv-interop/.installed: tests/interop/requirements.txt
	test -x .venv-interop/bin/python || $(PYTHON) -m venv .venv-interop
	.venv-interop/bin/python -m pip install --quiet --disable-pip-version-check -r tests/interop/requirements.txt
	touch $@

test-fast: setup ## run the tests that train no model
	env $(NO_DEEPSPEED) $(BIN)/python -m pytest -m "not slow and not browser"

check: setup ## lint, format, types, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

bench: setup ## measure the cost of exactness on this machine (other benchmarks: docs/performance.md)
	$(TRIPOD) bench step

clean: ## remove what a sweep and the tests wrote (not .venv)
	rm -rf $(ROOT) multirun outputs .pytest_cache .mypy_cache .ruff_cache .hypothesis
