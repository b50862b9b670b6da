# Everything runs in .venv, which every target below creates if necessary.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TOOLS := .tools
# The uv on the PATH, if it satisfies required-version in pyproject.toml: 0.8.10 or later. Otherwise one is installed here.
NEW_ENOUGH := {split($$2, v, "."); ok = v[1] > 0 || v[2] > 8 || (v[2] == 8 && v[3] + 0 >= 10)} END {exit !ok}
UV := $(shell uv --version 2>/dev/null | awk '$(NEW_ENOUGH)' && command -v uv || echo $(TOOLS)/bin/uv)
READY := $(VENV)/.ready
PIP := --quiet --disable-pip-version-check --no-warn-script-location
export PIP_ROOT_USER_ACTION := ignore
BOOT := $(TOOLS)/bin/python
# Tests that share an expensive fixture run in one process (loadgroup). Processes that tests start may write bytecode.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup \
	--durations=15 --durations-min=2

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-all lint typecheck clean

help: ## show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv with everything in it; TORCH=cpu: without the libraries of CUDA

demo: $(READY) ## train on the embedded glyphs and print the test accuracy (no download)
	@folder=outputs/demo/$$(date +%Y-%m-%d_%H-%M-%S); \
	$(BIN)/fsl train experiment=demo hydra.run.dir=$$folder && echo "folder $$folder"

test: $(READY) ## run the tests, all but the slow ones
	@$(PYTEST) -m "not slow"

test-slow: $(READY) ## run the slow tests
	@$(PYTEST) -m slow

test-all: test test-slow ## run every test

lint: $(READY) ## check style with ruff
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

typecheck: $(READY) ## check types with mypy
	@$(BIN)/mypy

clean: ## remove .venv, tools and caches (runs in outputs/ stay)
	@rm -rf $(VENV) $(TOOLS) build dist .mypy_cache .ruff_cache .pytest_cache *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml | $(UV)
ifdef TORCH
	@$(UV) venv --quiet --allow-existing $(VENV)
	@env VIRTUAL_ENV=$(VENV) UV_COMPILE_BYTECODE=1 \
	$(UV) pip install --no-progress --torch-backend=$(TORCH) -e '.[learn2learn]' --group dev
else
	@env -u VIRTUAL_ENV UV_COMPILE_BYTECODE=1 $(UV) sync --no-progress --extra learn2learn
endif
	@$(BIN)/python -m compileall -q fsl_cli
	@touch $@

$(TOOLS)/bin/uv:
	@echo "fetching uv into $(TOOLS)/"
	@$(PYTHON) -m pip install $(PIP) --target $(TOOLS) uv || \
	{ echo "$(PYTHON) has no pip that works: trying a virtual environment"; \
	$(PYTHON) -m venv --clear $(TOOLS) && $(BOOT) -m pip install $(PIP) uv; }
