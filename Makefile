# Two commands for a fresh machine with python3 and make: `make demo` and `make test`.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test thorough check docs examples clean

demo: .venv/run
	rm -rf runs/demo
	$(BIN)/lorakit train --config docs/examples/demo.toml

test: .venv/test
	$(BIN)/python -m pytest -n 2

thorough: .venv/test
	$(BIN)/python -m pytest -n 2 -m thorough

check: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/basedpyright --project tests/consumer

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

examples: .venv/test
	.ci/examples

.venv/run: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) --editable .
	touch $@

.venv/test: .venv/run
	$(INSTALL) --editable '.[test]'
	touch $@

.venv/docs: .venv/run
	$(INSTALL) --editable '.[docs]'
	touch $@

clean:
	rm -rf site .venv runs dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
