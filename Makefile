# On a machine with Python, make and a package index, `make demo` and `make test` are all it takes.
SHELL := bash
.SHELLFLAGS := -eo pipefail -c
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := -m pip install --quiet --disable-pip-version-check
# uv takes the certificates of the system, as pip does.
export UV_SYSTEM_CERTS := 1

# The tested torch. As an exact version it resolves to a CPU build where an index offers one, while the newest one on
# PyPI brings gigabytes of CUDA along on Linux: `make newest TORCH=torch` takes it.
TORCH ?= torch==2.13.0

# The tests of what touches other libraries, for `make oldest` and `make newest`.
BOUNDS := -m "not slow" -k "not trained_model" $(addprefix tests/,models/test_logits.py models/test_linear_block.py \
	models/test_capture.py models/test_load.py models/test_generation.py models/test_released_code.py \
	models/test_peft_adapters.py models/test_completion.py models/test_walk.py measurement/test_measure.py \
	evaluation/test_speed.py linearization/test_linearize.py training/test_trainer.py training/test_regularizer.py \
	evaluation/test_harness.py::test_scores_are_those_of_the_harness_by_itself)

.PHONY: demo test slow faults matrix real docs package lint types contracts examples oldest newest lock clean

demo: $(READY)
	$(BIN)/rectilinear demo --out build/demo --overwrite

# One thread for each of the parallel test processes.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal -m "not slow"

slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal -m slow

# Every command killed at every step that it takes on disk, and many more generated inputs: hours. `make slow` tries some.
# Then the figures of docs/reliability.md.
faults: $(READY)
	rm -f benchmarks/faults.jsonl
	RECTILINEAR_FAULTS=all RECTILINEAR_FAULTS_REPORT=$(CURDIR)/benchmarks/faults.jsonl OMP_NUM_THREADS=1 \
		$(BIN)/pytest -n auto -m faults
	$(BIN)/python benchmarks/faults.py

# Every causal language model type that transformers has: what can be done with it, and is it right? Then its page.
matrix: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.matrix benchmarks/architectures.json
	$(BIN)/python benchmarks/architectures.py

# Decoders that people use, in folders of MODELS, on texts of TEXTS (benchmarks/real.py says which): two hours. It goes on
# where it was stopped.
real: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/real.py $(MODELS) $(TEXTS)
	$(BIN)/python benchmarks/real_page.py

# The site of the docs, whose links all lead somewhere.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# What is released, and that it runs where nothing else is: the wheel, made of the source archive.
package: $(READY)
	rm -rf dist
	$(BIN)/uv build --quiet
	$(PYTHON) -m venv --clear $(VENV)-package
	$(VENV)-package/bin/python $(PIP) "$(TORCH)" -c requirements/lock.txt dist/*.whl
	cd $(VENV)-package && bin/python -m rectilinear --version
	cd $(VENV)-package && bin/rectilinear measure storyteller --text stories --max-tokens 20000 --out measured
	cd $(VENV)-package && bin/rectilinear report measured --out page

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

contracts: $(READY)
	$(BIN)/lint-imports

examples: $(READY)
	$(BIN)/python examples/measure_any_module.py
	$(BIN)/python examples/measure_nanogpt.py
	$(BIN)/python examples/measure_recurrent_memory.py
	$(BIN)/python examples/merge_moments.py
	$(BIN)/python examples/watch_training.py
	$(BIN)/python examples/penalize_layers.py
	$(BIN)/jupyter execute examples/explore.ipynb

$(READY): pyproject.toml requirements/lock.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) -c requirements/lock.txt -e ".[dev]"
	touch $@

# The lowest versions that pyproject.toml allows, with the oldest Python; of torch the tested one.
oldest: $(READY)
	$(PYTHON) -m venv --clear $(VENV)-oldest
	$(VENV)-oldest/bin/python $(PIP) "$(TORCH)"
	$(BIN)/uv pip install --quiet --python $(VENV)-oldest -c requirements/oldest.txt -e ".[test]"
	OMP_NUM_THREADS=1 $(VENV)-oldest/bin/pytest -n auto --dist worksteal $(BOUNDS)

# Whatever is newest today; of torch the tested one unless TORCH says otherwise.
newest: $(READY)
	$(PYTHON) -m venv --clear $(VENV)-newest
	$(VENV)-newest/bin/python $(PIP) "$(TORCH)"
	$(BIN)/uv pip install --quiet --python $(VENV)-newest -e ".[test]"
	OMP_NUM_THREADS=1 $(VENV)-newest/bin/pytest -n auto --dist worksteal $(BOUNDS)

# The lock is resolved for every system, so that CUDA packages are left out: they come with torch where its build
# needs them.
COMPILE = echo "$(TORCH)" | $(BIN)/uv pip compile --quiet --no-header --no-annotate --no-emit-package rectilinear
WITHOUT_CUDA := sed -E '/^(nvidia|cuda|triton)/d'

lock: $(READY)
	$(COMPILE) --universal --extra dev pyproject.toml - | $(WITHOUT_CUDA) > lock.new
	$(COMPILE) --python-version 3.11 --resolution lowest-direct --extra test pyproject.toml - | $(WITHOUT_CUDA) > oldest.new
	mv lock.new requirements/lock.txt
	mv oldest.new requirements/oldest.txt

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest $(VENV)-package build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
