# `make serve` starts a server, `make test` runs all checks. PYTHON is the interpreter that .venv is created with.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e

.PHONY: check test serve install lint types format clean

check: test

serve: .venv/installed
	$(BIN)/naiad serve $(if $(CHECKPOINT),"$(CHECKPOINT)",--demo) $(ARGS)

install: .venv/installed

# two processes: 40 % less time than one on two cores
test: .venv/tested lint types
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/tested
	$(BIN)/basedpyright

format: .venv/tested
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) .
	touch $@

.venv/tested: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) '.[dev]'
	touch .venv/installed $@
