# Each target sets up what it needs: a virtual environment in .venv with the versions of constraints.txt.
# `make demo`, `make test`, `make quality`, `make clean`; PYTHON=python3.12 picks another interpreter.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test quality clean

help:
	@sed -n 2p Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, $(PYTHON) is {v}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv

# Done once, and again when what it reads has changed.
$(STAMP): setup.py constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --upgrade-strategy only-if-needed -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python recipes/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest

quality: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# Leaves outputs/ (your models) and the downloaded packages of .venv alone.
clean:
	rm -rf build dist hf_dynvit.egg-info .pytest_cache .ruff_cache $(STAMP)
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
