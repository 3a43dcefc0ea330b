# make quickstart | test | lint | bench: each does its own set-up, from nothing but Python 3.11 (or newer) and pip.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup quickstart test lint bench lock clean

PYTHON ?= python3
UV_VERSION := 0.13.8
BIN := .venv/bin
STAMP := .venv/.installed
WORLD := runs/quickstart/world
RUN := MPLBACKEND=agg $(BIN)/python

help: ## list the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## /  \1\t/'

setup: $(STAMP) ## build .venv with the pinned versions

$(STAMP): pyproject.toml requirements/locked.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(f"clip-suite needs Python 3.11 or newer, $(PYTHON) is {v}. Run: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode -c requirements/locked.txt -e '.[dev]'
	@touch $(STAMP)

quickstart: setup ## train, test and show the main job in a few minutes; writes runs/quickstart/
	[ -f $(WORLD)/annotations/captions_val2017.json ] || $(RUN) -m datamodules.scenes coco $(WORLD) --num 3000
	$(RUN) cli.py fit -c configs/quickstart.yaml
	@echo 'Look at runs/quickstart/report.html; beside it lie results.json, pictures/, checkpoints/ and the W&B run.'

test: setup ## run all tests; ARGS='-m "not slow"' for the fast ones, ARGS='-m gpu' for those of a GPU
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: setup ## style, docstrings, annotations, imports; types of the maths
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup ## measure ours against the plain way; writes benchmarks/RESULTS.md
	for script in benchmarks/*.py; do [ "$$script" = benchmarks/table.py ] || $(RUN) "$$script"; done

lock: setup ## pin the newest versions that pyproject.toml allows
	$(BIN)/uv pip compile pyproject.toml --extra dev --python-version 3.11 --upgrade --quiet \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links -o requirements/locked.txt

clean: ## remove build files and tool caches; keeps .venv, runs/ and cache/
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
