# make            the list of targets
# make test       installs into .venv if need be, then runs the tests; the others likewise

PYTHON  ?= python3
WORKERS ?= auto
ARGS    ?=

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs format check clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Runs again when what is to be installed has changed.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## a small problem solved from beginning to end, in the terminal
	$(BIN)/python examples/demo.py $(ARGS)

# One thread a worker: the workers share the cores already.
test: export OMP_NUM_THREADS := 1
test: export MKL_NUM_THREADS := 1
test: $(STAMP)  ## the tests; ARGS="-k riccati" runs some of them, WORKERS=0 runs them in one process
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

lint: $(STAMP)  ## the static checks: style, format, layers, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

docs: export NO_MKDOCS_2_WARNING := 1
docs: $(STAMP)  ## the documentation as a site in build/site; a warning is an error
	$(BIN)/mkdocs build --quiet --strict
	@echo "open $(CURDIR)/build/site/index.html"

format: $(STAMP)  ## writes what the static checks can repair by themselves
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check:  ## what continuous integration runs: test, lint, docs
	.ci/run

clean:  ## removes .venv, caches and build output; runs/ stays
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache .coverage htmlcov *.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
