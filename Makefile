# On a machine with Python, make and a package index, `make demo` and `make test` are all it takes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test slow lint types contracts examples clean

demo: $(READY)
	$(BIN)/rectilinear demo

# One thread for each of the parallel test processes.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto -m "not slow"

slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

contracts: $(READY)
	$(BIN)/lint-imports

examples: $(READY)
	$(BIN)/python examples/measure_any_module.py
	$(BIN)/python examples/merge_moments.py
	$(BIN)/python examples/watch_training.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
