# Everything a newcomer or CI runs. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
GL_STAMP := $(VENV)/.gl
BODIES_STAMP := $(VENV)/.bodies
RUN ?= runs/demo
# Of the images:
TAG ?= latest
ACCELERATOR ?= cpu
BUILD_NETWORK ?= default
REVISION ?= $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)

# Torch and BLAS threads that spin while they wait cost a small machine a factor of 5 to 12.
export OMP_WAIT_POLICY := PASSIVE

# Each worker loads torch (0.5 GB): more of them than two bring little.
PARALLEL := -n 2 --dist worksteal

.PHONY: help venv gl bodies demo test test-checks test-unit test-slow test-long test-containers images check lint format nano nano-libero nano-baselines libero bench bench-model wheel clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

venv: $(STAMP) ## make .venv with the pinned versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "perennial needs Python 3.11 or newer; try: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "Python's venv module is missing; install it and try again:"; \
	    echo "  sudo apt-get install -y python3-venv"; exit 1; }
	@echo "Installing into $(VENV) (about 2 GB, once; a few minutes) ..."
	@$(PYTHON) -m venv $(VENV)
	@set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check \
	  -c constraints.txt -e '.[all,dev]' | awk -F'[ <>=!~;(]' \
	  '/^Collecting/ {printf "%s ", $$2; fflush()} /^Installing/ {printf "\nUnpacking ..."; fflush()} END {print ""}'
	@echo "Installed."
	@touch $@

# What its robots need of it; all that it asks for would bring another torch and a hundred packages.
LEROBOT := lerobot draccus mergedeep pyyaml-include toml typing-inspect pyserial deepdiff orderly-set

bodies: $(BODIES_STAMP) ## install LIBERO with its assets and the other bodies that tests drive

# Their own step: the demo needs none of them.
$(BODIES_STAMP): $(STAMP)
	@echo "Installing LIBERO and other bodies into $(VENV) (about 1 GB, once) ..."
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet \
	  -c constraints.txt -e '.[all,bodies,dev]'
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt --no-deps \
	  $(LEROBOT) opencv-python-headless # headless: OpenCV, as LIBERO asks for it, needs a display
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --upgrade --no-deps \
	  --target $(VENV)/robosuite-1.5 robosuite==1.5.2 # beside LIBERO's 1.4; a test's path has it
	@touch $@

gl: $(GL_STAMP) ## find an OpenGL backend that renders off screen

PROBE_GL = $(BIN)/python -c 'from sim_bridge.gl import select_backend; print(select_backend())'

$(GL_STAMP): $(STAMP)
	@if backend=$$($(PROBE_GL) 2>/dev/null); then echo "MuJoCo renders with $$backend."; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing libosmesa6 for off-screen rendering ..."; \
	  { apt-get install -y -q libosmesa6 || \
	    { apt-get update -q && apt-get install -y -q libosmesa6; }; } >$(VENV)/apt.log 2>&1 || \
	    { tail -n 5 $(VENV)/apt.log; exit 1; }; \
	  echo "MuJoCo renders with $$($(PROBE_GL))." || exit 1; \
	else echo "MuJoCo cannot render off screen here; install this and try again:"; \
	  echo "  sudo apt-get install -y libosmesa6"; exit 1; fi
	@touch $@

demo: $(STAMP) $(GL_STAMP) ## train three tasks in sequence, evaluate five, show the summary
	@$(BIN)/perennial run run_dir=$(RUN)

test: test-checks test-unit test-slow ## all tests, each once; so does `make check test`

test-checks: $(STAMP) ## the tests that judge files: imports, configs, everything under deploy/
	$(BIN)/python -m pytest $(PARALLEL) -m checks $$(grep -rl --include='*.py' mark.checks tests)

test-unit: $(BODIES_STAMP) $(GL_STAMP) ## the fast tests, without those of test-checks
	$(BIN)/python -m pytest $(PARALLEL) -m "not checks and not slow and not containers"

test-slow: $(BODIES_STAMP) $(GL_STAMP) ## the tests that start processes or take long
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow and not checks and not containers and not long"

test-long: $(BODIES_STAMP) $(GL_STAMP) ## what takes too long for CI; run it before a release
	$(BIN)/python -m pytest -m long

test-containers: $(STAMP) ## build the images, run the compose stack (needs a Docker engine)
	$(BIN)/python -m pytest -s -m containers tests/containers

images: ## build the four images; ACCELERATOR=cuda for a GPU
	@for target in bridge sim agent learner; do \
	  DOCKER_BUILDKIT=1 docker build --quiet --target $$target --tag perennial-$$target:$(TAG) \
	    --network $(BUILD_NETWORK) --build-arg ACCELERATOR=$(ACCELERATOR) \
	    --build-arg PIP_FIND_LINKS=$(PIP_FIND_LINKS) --build-arg REVISION=$(REVISION) . || exit 1; \
	done

check: lint test-checks ## lint, then test-checks

lint: $(STAMP) ## ruff (rules and format), mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

nano: $(STAMP) $(GL_STAMP) ## rebuild the nano policy from nothing (an hour or two on a CPU; resumable)
	$(BIN)/python -m deploy.local.nano

nano-libero: $(BODIES_STAMP) $(GL_STAMP) ## rebuild the policy for five LIBERO tasks (hours; resumable)
	$(BIN)/python -m deploy.local.nano --policy nano-libero

nano-baselines: $(STAMP) $(GL_STAMP) ## train the policies without pretraining, for benchmarks (an hour or two; resumable)
	$(BIN)/python -m deploy.local.nano --policy nano-scratch
	$(BIN)/python -m deploy.local.nano --policy nano-cnn

libero: $(BODIES_STAMP) $(GL_STAMP) ## learn three LIBERO tasks in sequence (hours; resumable); QUICK=1: a trial
	$(BIN)/perennial run suite=libero_spatial model=nano-libero \
	  $(if $(QUICK),budget=libero-quick run_dir=runs/libero-quick,budget=libero run_dir=runs/libero)

bench: $(BODIES_STAMP) $(GL_STAMP) ## speed of the server alone; where an iteration's time goes; robots' ticks
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.iteration
	$(BIN)/python -m benchmarks.robot_rate

bench-model: $(STAMP) ## speed of the 7B on this CUDA device (hours; resumable), random weights
	$(BIN)/python -m benchmarks.model_latency --device cuda --size 7b

wheel: $(STAMP) ## build dist/*.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean: ## remove .venv, caches and builds; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
