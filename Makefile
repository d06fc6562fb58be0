# `make demo` and `make test` do all the set-up on a machine with Python 3.10 or later, a C++ compiler and make.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=

.PHONY: demo test test-extended test-packaging bench lint clean
.DEFAULT_GOAL := demo

# torch comes first and by name, so that nothing below pulls another build of it.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: $(BIN)/python
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	touch $@

# Installed in place; the libraries are rebuilt when a source of theirs or a build file changes.
$(VENV)/.installed: $(VENV)/.torch pyproject.toml setup.py CMakeLists.txt build_tools/build_backend.py \
		$(shell find csrc -type f)
	$(BIN)/python -m pip install --quiet -e ".[test]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/asegnet-fast demo --resume

test: $(VENV)/.installed
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# The marker `hypothesis` is on every property test.
test-extended: $(VENV)/.installed
	ASEGNET_TEST_EXAMPLES=extended $(BIN)/python -m pytest -m "extended or hypothesis" $(PYTEST_ARGS)

test-packaging: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e ".[test,packaging]"
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/python -m pytest tests/test_packaging.py -m packaging $(PYTEST_ARGS)

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.run

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) build asegnet_fast/lib asegnet_fast/_C*.so
