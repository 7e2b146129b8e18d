# Two commands for users: `make train` and `make test`. `make check` is the developer's loop. All set up .venv first.
PYTHON ?= $(firstword $(wildcard $(shell command -v python3.11)) python3)
ACCEL ?= cpu
ARGS ?=
RUN = .venv/bin/python -m

.PHONY: setup train test gpu check lint types imports fast format clean

setup:
	@$(PYTHON) launch/setup_env.py --accelerator $(ACCEL)

train: setup
	@$(RUN) lpo_ray train configs/quickstart.yaml $(ARGS)

test: setup
	@$(RUN) pytest $(ARGS)

# On a machine with a GPU: make gpu ACCEL=cuda
gpu: setup
	@$(RUN) pytest -m gpu $(ARGS)
	@mkdir -p runs && PYTHONPATH=. .venv/bin/python tests/benchmarks/transport.py runs/transport.json --models quickstart

check: setup lint types imports fast

lint: setup
	@.venv/bin/ruff check . && .venv/bin/ruff format --check .

types: setup
	@.venv/bin/pyright

imports: setup
	@.venv/bin/lint-imports

fast: setup
	@$(RUN) pytest -m "not slow and not e2e and not gpu" $(ARGS)

format: setup
	@.venv/bin/ruff check --fix . ; .venv/bin/ruff format .

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
