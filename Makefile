# One environment in .venv, made on first use; BIN= uses the tools on PATH instead (make check BIN=).
PYTHON ?= python3
BIN ?= .venv/bin/
PYTEST = $(BIN)python -m pytest -n 2 --dist loadfile

.PHONY: check format lint types test slow demo

check: lint types test

ifeq ($(BIN),.venv/bin/)
lint format types test slow demo: .venv/.installed
endif

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -c constraints.txt -e ".[dev]"
	touch $@

lint:
	$(BIN)ruff format --check .
	$(BIN)ruff check .

format:
	$(BIN)ruff format .
	$(BIN)ruff check --fix .

types:
	$(BIN)mypy

test:
	$(PYTEST)

slow:
	$(PYTEST) -m slow

demo:
	$(BIN)pyro-armed demo
