# `make test` and `make demo` need nothing but Python 3.11 or newer; both keep what they install in $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := test
.DELETE_ON_ERROR:
.PHONY: test demo gpu-check

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

# Simulates a scan, reconstructs it through the server, and leaves pictures and numbers in demo-output/.
demo: $(VENV)/.demo
	$(BIN)/inrecon demo --output demo-output

# Everything a change must pass, cheapest first; the first failure ends it.
test: $(VENV)/.dev
	@trap 'echo "make test: exit code $$? after $$SECONDS s"' EXIT; \
	step() { echo "== $$*"; "$(BIN)/$$@"; }; \
	step ruff check .; \
	step ruff format --check .; \
	step mypy; \
	step lint-imports --no-logo; \
	step pytest

# On a machine with an NVIDIA GPU: the tests that need one, then how long a fit takes.
gpu-check: $(VENV)/.dev
	$(BIN)/pytest -m cuda -ra
	$(BIN)/python tests/benchmarks/fit_timing.py
	$(BIN)/inrecon bench live --only R6 --frames 40 --seeds 1 --methods cg_sense,residual_tv,residual_inr --device cuda
