# Everything sets itself up: a virtual environment in .venv, made again only when pyproject.toml or the lock change.
# PYTHON=/path/to/python uses an existing environment instead. AVX2=1 builds pillow-simd for AVX2 (this CPU must have it).

SHELL := /bin/bash
BASE_PYTHON ?= python3
ifdef PYTHON
  PY := $(PYTHON)
  READY :=
else
  PY := .venv/bin/python
  READY := .venv/.stamp
endif
BIN := $(dir $(PY))
# Folders that pip is told of (a CPU build of torch may lie there); uv does not read pip's settings by itself.
export UV_FIND_LINKS ?= $(or $(PIP_FIND_LINKS),$(shell $(BASE_PYTHON) -m pip config get global.find-links 2>/dev/null))
export UV_LINK_MODE ?= copy
TEST_FLAGS ?=
# Two processes share the tests as tests/conftest.py says.
TEST_PROCESSES ?= 2
IN_PARALLEL := -n $(TEST_PROCESSES) --no-loadscope-reorder

.PHONY: setup test test-fast test-long check up down status demo demo-clean bench doctor lock clean

setup: $(READY)

.venv/.stamp: pyproject.toml constraints.txt
	$(BASE_PYTHON) infra/build_tools.py
	bash infra/setup.sh $(BASE_PYTHON)
	touch $@

test: $(READY)
	$(PY) -m pytest $(IN_PARALLEL) -m "not long" $(TEST_FLAGS)

test-fast: $(READY)
	$(PY) -m pytest $(IN_PARALLEL) -m "not long and not slow" $(TEST_FLAGS)

test-long: $(READY)
	$(PY) -m pytest -m long $(TEST_FLAGS)

check: $(READY)
	$(BIN)ruff check .
	$(BIN)basedpyright
	$(BIN)lint-imports

up: $(READY)
	$(PY) -m infra.local up

down: $(READY)
	$(PY) -m infra.local down

status: $(READY)
	$(PY) -m infra.local status

doctor: $(READY)
	$(PY) jobs/doctor.py

demo: $(READY)
	$(PY) jobs/demo.py $(if $(IMAGES),--images "$(IMAGES)")

demo-clean: $(READY)
	$(PY) jobs/demo.py --clean

bench: $(READY)
	$(PY) -m benchmarks

# Writes the lock anew; needs the web. The one torch line fits the CPU and the CUDA build alike.
lock: $(READY)
	bash infra/lock.sh

clean:
	rm -rf .venv .tool build *.egg-info
