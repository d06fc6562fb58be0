# `make demo` and `make test` do all the set-up on a machine with Python 3.10 or later, a C++ compiler and make.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
JOBS ?= $(shell nproc)

.PHONY: demo test test-extended test-packaging test-vectors sanitize sanitize-gpu fuzz bench lint clean
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

# A file's tests stay together: they share what they made.
test: $(VENV)/.installed
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# The marker `hypothesis` is on every property test.
test-extended: $(VENV)/.installed
	ASEGNET_TEST_EXAMPLES=extended $(BIN)/python -m pytest -m "extended or hypothesis" $(PYTEST_ARGS)

# The tools of the extra `packaging`, without building the library once more.
$(VENV)/.tools: pyproject.toml | $(VENV)/.installed
	$(BIN)/python -c "from importlib.metadata import requires; \
	print(*(r.split(';')[0] for r in requires('asegnet-fast') if 'packaging' in r.partition('extra')[2]), sep='\n')" \
	| $(BIN)/python -m pip install --quiet -r /dev/stdin
	touch $@

test-packaging: $(VENV)/.tools
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/python -m pytest tests/test_packaging.py -m packaging $(PYTEST_ARGS)

# Builds of the CPU library for tests alone, in build/; see build_tools/variant.py.
VARIANT = PATH=$(abspath $(BIN)):$$PATH $(BIN)/python build_tools/variant.py

# --capture=sys: a sanitizer's report goes past Python, to the file descriptor.
sanitize: $(VENV)/.tools
	$(VARIANT) sanitize -m pytest tests/ops --capture=sys $(PYTEST_ARGS)
	$(VARIANT) sanitize -m tests.fuzz_ops --calls 10000 --seed 1
	ATEN_CPU_CAPABILITY=default $(VARIANT) sanitize -m pytest tests/ops -m kernels --capture=sys $(PYTEST_ARGS)
	$(VARIANT) sanitize-64 -m pytest tests/ops -m kernels --capture=sys $(PYTEST_ARGS)

# On a machine with a GPU; compute-sanitizer comes with the CUDA toolkit.
sanitize-gpu: $(VENV)/.installed
	for tool in memcheck racecheck initcheck; do \
	  compute-sanitizer --tool $$tool --error-exitcode 1 --target-processes all \
	    $(BIN)/python -m pytest tests/ops -m "gpu and kernels" $(PYTEST_ARGS) || exit 1; \
	done

test-vectors: $(VENV)/.tools
	$(VARIANT) vectors-64 -m pytest tests/ops -m kernels $(PYTEST_ARGS)

# Cross-validations killed at random moments and resumed, against one that was never killed.
kill-runs: $(VENV)/.installed
	$(BIN)/python -m tests.kill_runs --kills 50

fuzz: $(VENV)/.installed
	$(BIN)/python -m tests.fuzz_ops --calls 10000

# Everything that README's figures come from; about an hour on two cores, most of it torch.compile.
bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.run
	$(BIN)/python -m benchmarks.run --batch 16 --no-compile
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.summary

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) build asegnet_fast/lib asegnet_fast/_C*.so
