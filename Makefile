# Two commands do all the set-up: `make demo` and `make test`. `make help` lists the rest.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
DEMO_FLAGS := $(if $(ONCE),--once) $(if $(DATA),--data $(DATA)) $(if $(JSON),--json)

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast lint format bench bench-peers soak lock clean

help: ## List what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: $(VENV)/demo.done ## Run the main job against the simulator; ONCE=1 ends by itself, DATA=DIR uses real texts
	@$(BIN)/drivetrain demo $(DEMO_FLAGS)

test: $(VENV)/test.done ## Run every test, the slow ones too
	@$(BIN)/python -m pytest -n auto --dist loadfile $(PYTEST_FLAGS)

test-fast: $(VENV)/test.done ## Run the tests that finish while you wait
	@$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow" $(PYTEST_FLAGS)

lint: $(VENV)/test.done ## Format check, linter, types, import directions
	@$(BIN)/ruff format --check src tests benchmarks
	@$(BIN)/ruff check src tests benchmarks
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(VENV)/test.done ## Format the code
	@$(BIN)/ruff format src tests benchmarks
	@$(BIN)/ruff check --fix src tests benchmarks

bench: $(VENV)/test.done ## Measure the gateway beside nginx and the peers that are installed
	@$(BIN)/python benchmarks/run.py $(BENCH_FLAGS)

bench-peers: $(VENV)/test.done ## Install the peers, each in an environment of its own, and measure all
	@$(BIN)/python benchmarks/peers.py $(BENCH_FLAGS)

soak: $(VENV)/test.done ## A million requests: does memory grow?
	@$(BIN)/python benchmarks/soak.py $(BENCH_FLAGS)

lock: $(VENV)/test.done ## Pin the requirements anew (needs uv on the PATH)
	@cd requirements && for set in run demo test; do \
	  uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    --no-emit-index-url --no-emit-find-links $$set.in -o $$set.txt; done

clean: ## Remove the environments and caches
	@rm -rf $(VENV) .venvs .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/bin/python:
	@scripts/make-venv $(VENV)

$(VENV)/demo.done: requirements/demo.txt pyproject.toml | $(VENV)/bin/python
	@scripts/install $(VENV) requirements/demo.txt
	@touch $@

$(VENV)/test.done: requirements/test.txt pyproject.toml | $(VENV)/bin/python
	@scripts/install $(VENV) requirements/test.txt
	@touch $@ $(VENV)/demo.done
