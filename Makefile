# Everything happens in .venv, in this folder, without root.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# The first interpreter that is new enough and can make virtual environments; 3.11 is preferred.
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13 python3.14; do \
	"$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
	2>/dev/null && echo "$$python" && break; done)

# For the isolated environment that pip builds in, which -c does not reach: the second name is that
# of pip 25.3 and later.
PIN_BUILD := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt

# What the CPU engine is built from, and the packages that an editable install knows by name.
NATIVE := CMakeLists.txt $(wildcard models/kernels/cpu/*.cpp models/kernels/cpu/*.h \
	models/kernels/cpu/isa/*)
PACKAGES := $(shell find app client models store worker -name __init__.py)

.PHONY: help install demo test test-fast lint format docs sanitize gpu-check

help:
	@echo 'make demo       train, compress and serve a small network, and show what it measures'
	@echo 'make test       everything that is checked before a change goes in'
	@echo 'make test-fast  the tests that take seconds'
	@echo 'make lint       format, lint, types and import rules'
	@echo 'make format     put the sources into shape'
	@echo 'make docs       write the pages and the dashboard that are made from the code'
	@echo 'make sanitize   the CPU engine under sanitizers and valgrind (needs g++ and CMake)'
	@echo 'make gpu-check  the GPU engine, on a machine with a GPU, with the torch that is there'
	@echo 'make install    only the environment, in $(VENV)'

install: $(INSTALLED)

# The stamp comes last: an install that broke off is done again.
$(INSTALLED): pyproject.toml constraints.txt $(NATIVE) $(PACKAGES)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		test -n '$(PYTHON)' || { \
			echo 'bitpress needs Python 3.11 or newer, with venv (PYTHON=... names one)' >&2; \
			exit 1; \
		}; \
		'$(PYTHON)' -m venv --clear $(VENV); \
	}
	$(PIN_BUILD) $(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@

demo: install
	$(BIN)/python -m benchmarks.demo

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Side by side, as many tests wait for a process to end or a lease to pass; a file's tests share
# what they have started. Files in their own order, so that the long ones do not come last.
TEST_PROCESSES ?= 2
PYTEST := $(BIN)/pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

test: lint
	$(PYTEST)

test-fast: install
	$(PYTEST) -m 'not slow and not cifar'

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install
	$(BIN)/python -m app.api_reference
	$(BIN)/python -m app.metrics_reference
	$(BIN)/python deploy/grafana/dashboard.py

# Takes minutes; SCALE=10 takes a tenth of the cases.
sanitize:
	tests/native/sanitize

# With the Python of the machine, whose torch is made for its GPU: nothing is installed. Takes eight
# minutes at most.
GPU_PYTHON ?= python3

gpu-check:
	$(GPU_PYTHON) -m benchmarks.gpu_check
