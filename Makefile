# Two commands do all the set-up: `make demo` and `make check`. Both make their own virtual environment first.

VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
CORES  := $(shell nproc 2>/dev/null || echo 2)
CMAKE_FLAGS = -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE=$(abspath $(BIN)/python)

.PHONY: browser check demo test lint types contracts docs native sanitize fuzz bench clean

check: lint types contracts browser test fuzz ## everything that has to hold

demo: $(VENV)/.ready ## compress the bundled model and measure what it costs
	$(BIN)/python -m experiments.demo

# The tests of the HTML report want a Chromium. Where it cannot be installed they are skipped, and say so.
browser:
	@command -v chromedriver >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver fonts-dejavu-core >/dev/null; } \
	  || echo 'no Chromium: the browser tests will be skipped (apt-get install chromium chromium-driver)'

test: $(VENV)/.ready
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready
	$(BIN)/mypy

contracts: $(VENV)/.ready
	$(BIN)/lint-imports

docs: $(VENV)/.ready ## rewrite docs/cli.md from the commands, and build the site in build/site
	$(BIN)/python -m docs.make_cli > docs/cli.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

native: $(VENV)/.ready ## build the native CPU kernels again, after a change in native/
	$(BIN)/cmake -S native -B build/native $(CMAKE_FLAGS) -DMOESAIC_IN_PLACE=ON
	$(BIN)/cmake --build build/native --parallel $(CORES)

sanitize: $(VENV)/.ready ## the tests of the native kernels under AddressSanitizer and UndefinedBehaviorSanitizer
	$(BIN)/cmake -S native -B build/sanitized $(CMAKE_FLAGS) -DMOESAIC_SANITIZE=ON
	$(BIN)/cmake --build build/sanitized --parallel $(CORES)
	build/sanitized/compare_isas
	$(BIN)/python -m tests.native.sanitized build/sanitized

fuzz: $(VENV)/.ready ## random arguments and cut buffers at the native module, for a minute
	$(BIN)/python -m tests.native.fuzz --seconds 60

bench: $(VENV)/.ready
	$(BIN)/python -m benchmarks.compress

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

clean:
	rm -rf $(VENV) build dist demo-output src/moesaic/kernels/_cpu*.so
	find native/in_place -mindepth 1 ! -name CMakeLists.txt -delete
