# Each target sets up what it needs: a virtual environment in .venv with the versions of constraints*.txt.
# `make demo`, `make test`, `make test-deploy`, `make quality`, `make clean`; PYTHON=python3.12 picks another interpreter.

PYTHON ?= python3
BIN := .venv/bin
DEMO := .venv/.installed
DEV := .venv/.installed-dev
DEPLOY := .venv/.installed-deploy
# Python files are compiled when they are first imported: few of those that are installed ever are.
INSTALL = $(BIN)/python -m pip install --no-compile

.DEFAULT_GOAL := help
.PHONY: help demo test test-deploy quality clean

help:
	@sed -n 2p Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, $(PYTHON) is {v}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv

# Done once, and again when what it reads has changed. With complete pins pip has nothing to resolve; torch alone brings
# its own dependencies, which differ by platform (CUDA's libraries).
$(DEMO): setup.py constraints.txt | $(BIN)/python
	$(INSTALL) -c constraints.txt setuptools torch
	$(INSTALL) --no-deps -r constraints.txt
	$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

$(DEV): $(DEMO) constraints-dev.txt
	$(INSTALL) --no-deps -r constraints-dev.txt
	@touch $@

$(DEPLOY): $(DEV) constraints-deploy.txt
	$(INSTALL) --no-deps -r constraints-deploy.txt
	@touch $@

demo: $(DEMO)
	$(BIN)/python recipes/demo.py

test: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# What `make test` leaves out where ONNX Runtime and OpenVINO are not installed.
test-deploy: $(DEPLOY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests/test_pins.py tests/deploy/test_exported.py \
		tests/deploy/test_exported_cascade.py tests/deploy/test_fixed_merges.py tests/deploy/test_side_by_side.py \
		tests/measure/test_runtimes.py tests/recipes/test_recipe_export.py tests/recipes/test_recipe_runtimes.py

quality: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# Leaves outputs/ (your models) and the downloaded packages of .venv alone.
clean:
	rm -rf build dist hf_dynvit.egg-info .pytest_cache .ruff_cache $(DEMO) $(DEV) $(DEPLOY)
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
