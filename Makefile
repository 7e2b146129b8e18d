# Two commands for users: `make train` and `make test`. `make check` is the developer's loop, `make soak` has what takes
# long: chaos, lost hosts, every transport, every generator. All set up .venv first.
PYTHON ?= $(firstword $(wildcard $(shell command -v python3.11)) python3)
ACCEL ?= cpu
ARGS ?=
CLUSTERS ?= 2
RUN = .venv/bin/python -m
# Tests that start no cluster run side by side. Of those that do, CLUSTERS at a time, since they wait much.
SIDE_BY_SIDE = -n logical --maxprocesses 8 --dist worksteal
BY_CLUSTER = -n logical --maxprocesses $(CLUSTERS) --dist loadgroup --no-loadscope-reorder

# On GPUs: one that a rank and an engine share. vLLM's CUDA build has no engine for CPUs, so e2e tests of those skip.
QUICKSTART = configs/quickstart$(if $(filter cuda,$(ACCEL)),_gpu).yaml

.PHONY: setup train test soak gpu gpu-report check lint types imports fast format clean lock

setup:
	@$(PYTHON) launch/setup_env.py --accelerator $(ACCEL)

train: setup
	@$(RUN) lpo_ray train $(QUICKSTART) $(ARGS)

test: setup
	@$(RUN) pytest $(SIDE_BY_SIDE) -m "not e2e and not gpu and not long" $(ARGS)
	@$(RUN) pytest $(BY_CLUSTER) -m "e2e and not long" $(ARGS)

soak: setup
	@$(RUN) pytest -m long $(ARGS)

# On a machine with a GPU: make gpu ACCEL=cuda
gpu: setup
	@$(RUN) pytest -m gpu $(ARGS)
	@mkdir -p runs && PYTHONPATH=. .venv/bin/python tests/benchmarks/transport.py runs/transport.json --models quickstart

# The day a GPU is there, in at most 15 minutes: make gpu-report ACCEL=cuda. Without one, what makes sense on CPUs.
gpu-report: setup
	@PYTHONPATH=. .venv/bin/python tests/benchmarks/gpu_report.py runs/gpu-report $(ARGS)

check: setup lint types imports fast

lint: setup
	@.venv/bin/ruff check . && .venv/bin/ruff format --check .

types: setup
	@.venv/bin/pyright

imports: setup
	@.venv/bin/lint-imports

fast: setup
	@$(RUN) pytest $(SIDE_BY_SIDE) -m "not slow and not e2e and not gpu and not long" $(ARGS)

format: setup
	@.venv/bin/ruff check --fix . ; .venv/bin/ruff format .

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# requirements-cuda.lock, by uv (pip install uv): the versions of the CPU lock wherever vLLM's CUDA build allows.
lock:
	@grep -v '^#' requirements-cpu.lock >requirements-cuda.lock
	@echo wheel | uv pip compile pyproject.toml - --extra cuda --extra dev --extra gguf --python-version 3.11 \
	  --python-platform x86_64-manylinux_2_28 --index-strategy unsafe-best-match --no-emit-index-url --no-annotate \
	  --custom-compile-command "make lock" --quiet --output-file requirements-cuda.lock
