# The six verbs of this project. Everything runs inside .venv, which `make setup` builds.
.DEFAULT_GOAL := help
.PHONY: help setup demo test check proto bench

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp

# Ray reports its use to its makers unless told not to.
export RAY_USAGE_STATS_ENABLED := 0

help: ## Show this list.
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Build .venv with every dependency (again only when pyproject.toml or constraints.txt change).

demo: $(STAMP) ## Train, evaluate, profile, serve and answer real gRPC requests (about ten minutes on 2 cores).
	$(BIN)/elastic demo

# A process that a test ends is not replaced: xdist 3.8 can then wait for ever for tests that have run.
test: $(STAMP) ## Run the tests, in two processes.
	$(BIN)/pytest --numprocesses 2 --no-loadscope-reorder --max-worker-restart 0

check: $(STAMP) ## Lint, formatting, types and import contracts.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

proto: $(STAMP) ## Generate elastic/_pb from protos/.
	$(BIN)/python protos/generate.py

bench: $(STAMP) ## Run every script under benchmarks/; results go to benchmarks/results/.
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script"; done
	@set -e; for name in server_cost faults; do echo "== benchmarks/$$name"; $(BIN)/python -m benchmarks.$$name; done

$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	for python in python3 python3.13 python3.12 python3.11; do \
	    if "$$python" -c 'import ensurepip, sys; sys.exit(not (3, 11, 4) <= sys.version_info[:3] < (3, 14))' 2>/dev/null; \
	    then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "make setup needs Python 3.11 (from 3.11.4), 3.12 or 3.13 with its venv module (Debian: apt install python3-venv)" >&2; \
	    exit 1; \
	fi; \
	if [ ! -x $(BIN)/python ]; then \
	    echo "== 1/3 virtual environment: $$($$found --version) in $(VENV)"; "$$found" -m venv $(VENV); \
	fi
	@echo "== 2/3 torch and torchvision (the largest download)"
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt torch torchvision
	@echo "== 3/3 elastic with its dependencies and development tools"
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
	@echo "== ready: try '$(BIN)/elastic --help', 'make test' or 'make demo'"
