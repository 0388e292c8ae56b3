# Everything starts here: `make demo` and `make test` install what they need on a fresh clone.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs/demo
STAMP := $(VENV)/.installed

.PHONY: install demo test bench lint
.DEFAULT_GOAL := install

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/python -m jobs.demo --out $(OUT)

test: install
	$(BIN)/python -m pytest -n 2 --dist loadgroup

bench: install
	mkdir -p runs/bench
	set -e; for path in $$(grep -l __main__ benchmarks/[a-z]*.py); do name=$$(basename $$path .py); \
	  $(BIN)/python -m benchmarks.$$name --json runs/bench/$$name.json; done

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy
