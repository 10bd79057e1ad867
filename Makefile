# Two commands do all the set-up: `make demo` and `make check`. Both make their own virtual environment first.

VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin

.PHONY: check demo test lint types contracts docs native bench clean

check: lint types contracts test ## everything that has to hold

demo: $(VENV)/.ready ## compress the bundled model and measure what it costs
	$(BIN)/python -m experiments.demo

test: $(VENV)/.ready
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready
	$(BIN)/mypy

contracts: $(VENV)/.ready
	$(BIN)/lint-imports

docs: $(VENV)/.ready ## rewrite docs/cli.md from the commands
	$(BIN)/python -m docs.make_cli > docs/cli.md

native: $(VENV)/.ready ## build the native CPU kernels in place (opt-in: MOESAIC_KERNELS=cpu)
	$(BIN)/python -m pip install --quiet 'nanobind>=3.1,<4' 'cmake>=3.20'
	$(BIN)/cmake -S native -B build/native -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE=$(abspath $(BIN)/python)
	$(BIN)/cmake --build build/native --parallel 2
	cp build/native/_cpu*.so src/moesaic/kernels/

bench: $(VENV)/.ready
	$(BIN)/python -m benchmarks.compress

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist demo-output
