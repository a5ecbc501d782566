# `make demo` and `make test` do all the set-up on a fresh clone: the venv is a file like any other.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check lint types imports app wheel pictures bench clean help

help:
	@echo "make demo    install, then draw class activation maps of the examples into out/demo"
	@echo "make test    install what tests need, then run them"
	@echo "make check   lint + types + import contract + tests: what CI runs"
	@echo "make app     install, then start the app"
	@echo "make wheel   build the wheel and try it from an empty folder"
	@echo "make pictures  draw the pictures of README anew"
	@echo "make bench   print every benchmark (quiet machine wanted)"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --upgrade pip

$(VENV)/.runtime: requirements.txt pyproject.toml | $(BIN)/python
	@echo "installing r2viz and its libraries into $(VENV): some minutes and GB the first time"
	@$(BIN)/python -m pip install -qq --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "installing what the tests need"
	@$(BIN)/python -m pip install -qq --editable '.[dev]'
	@touch $@

demo: $(VENV)/.runtime
	$(BIN)/python -m r2viz.demo examples out/demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

imports: $(VENV)/.dev
	$(BIN)/lint-imports

check: lint types imports test

app: $(VENV)/.runtime
	$(BIN)/r2viz app

wheel: $(VENV)/.dev
	sh .ci/try_wheel "$(abspath $(BIN))/python"

pictures: $(VENV)/.runtime
	$(BIN)/python docs/draw_pictures.py --pair mini

bench: $(VENV)/.dev
	$(BIN)/python -m pip install -qq --editable '.[bench]'
	$(BIN)/python -m benchmarks.cam
	$(BIN)/python -m benchmarks.erf

clean:
	rm -rf out build dist *.egg-info
