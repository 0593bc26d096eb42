# make demo    set up .venv and stream the embedded digits through a Bayesian VAE
# make test    set up .venv and run every check: ruff, mypy --strict, pytest with doctests
#
# torch is installed first and by itself, pinned, so that pip takes the CPU build where the index offers one and downloads no CUDA
# packages. On an index without it:  make demo TORCH_INDEX=URL  (an index of CPU builds)
PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test clean
.DELETE_ON_ERROR:

demo: .venv/installed
	$(BIN)/streaming-vb demo

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(INSTALL) --editable '.[all,dev]'
	touch $@

clean:
	rm -rf .venv
