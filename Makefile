# Every target does all of its own set-up, in a virtual environment: `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# PyTorch's CPU wheels are much smaller than those on PyPI: TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
TORCH_INDEX_URL ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check install $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL))

export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-gpu test-extras lint bench golden clean

help:  ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|'

demo: $(VENV)/.stamp-demo  ## federated code search on this machine: four devices, one aggregator, real processes
	$(BIN)/python -m benchmarks quickstart

test: $(VENV)/.stamp-dev  ## the tests: CPU, offline, a few minutes
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(VENV)/.stamp-dev  ## the slow tests
	$(BIN)/python -m pytest -m "slow and not gpu"

test-gpu: $(VENV)/.stamp-dev  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

test-extras:  ## the tests that need the extras ray and flower, in an environment of their own
	$(MAKE) VENV=$(VENV)-extras "$(VENV)-extras/.stamp-dev,ray,flower"
	$(VENV)-extras/bin/python -m pytest -m "not gpu" tests/aggregator/workers/test_ray.py tests/aggregator/integrations tests/benchmarks/grid/test_ray_cells.py

lint: $(VENV)/.stamp-dev  ## format, style, types and import contract; changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.stamp-bench  ## the quick benchmarks that need nothing but this, with their results under out/
	mkdir -p out
	$(BIN)/python -m benchmarks quickstart --preset quick --out out/quickstart.json
	$(BIN)/python -m benchmarks faults --preset quick --out out/faults.json --plot out/faults.png
	$(BIN)/python -m benchmarks collapse --preset quick --out out/collapse.json --plot out/collapse.png
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks merge --preset quick --out out/merge.json --plot out/merge.png

golden: $(VENV)/.stamp-dev  ## write the golden vectors anew: only with a new protocol version
	$(BIN)/python tests/golden/vectors.py

clean:  ## remove the virtual environment and everything built or cached
	rm -rf $(VENV) $(VENV)-extras build dist out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp per extra, so that the second run of a target installs nothing.
$(VENV)/.stamp-%: pyproject.toml | $(BIN)/python
	@$(if $(TORCH_INDEX_URL),,command -v nvidia-smi >/dev/null || echo "No NVIDIA GPU found: PyPI's torch would bring 2-3 GB of CUDA packages; with TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu it is about 200 MB.")
	$(PIP) -e '.[$*]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
