# Each target makes .venv and installs what it needs; Python 3.11+ with pip is enough, uv is used where it is present.
PYTHON ?= python3
BIN := .venv/bin
UV := $(shell command -v uv 2>/dev/null)
ifeq ($(UV),)
NEW_VENV = $(PYTHON) -m venv .venv
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
else
# uv reads none of pip's settings; hand it the one that says where local wheels lie.
export UV_FIND_LINKS := $(PIP_FIND_LINKS)
NEW_VENV = $(UV) venv --quiet --allow-existing --python $(PYTHON) .venv
INSTALL = $(UV) pip install --quiet --python $(BIN)/python --constraint constraints.txt
endif

.PHONY: quickstart test test-slow lint format docs bench wheels kernels ablations clean

quickstart: .venv/installed  ## collect, train, evaluate, probe, report: two minutes on two cores
	$(BIN)/lewm quickstart $(ARGS)

test: lint  ## the default tests, under 10 minutes on two cores
	$(BIN)/python -m pytest -n 2 $(ARGS)

test-slow: .venv/installed-dev  ## the tests that train and plan for minutes
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/installed-docs  ## the site, in build/site; a link that leads nowhere is an error (--quiet would hide it)
	NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict

bench: .venv/installed  ## every benchmark, each paired against its reference
	$(BIN)/lewm bench

# What a machine with a CUDA build of PyTorch and no network usually lacks; see docs/gpu.md.
PYTHON_VERSION ?= 3.12
WHEELS = hdf5plugin lightning-fabric gymnasium farama-notifications tyro docstring-parser typeguard pymunk cffi pycparser

wheels: .venv/installed  ## wheels to bring to such a machine, in build/wheels
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest build/wheels \
		--python-version $(PYTHON_VERSION) --implementation cp --constraint constraints.txt \
		$(foreach glibc,2_28 2_27 2_17,--platform manylinux_$(glibc)_x86_64) --platform manylinux2014_x86_64 $(WHEELS)

kernels: build/kernels/node_modules  ## lewm/lab/kernels.wasm from its source; needs npm
	$</.bin/asc lewm/lab/kernels.ts --config lewm/lab/asconfig.json --outFile lewm/lab/kernels.wasm

build/kernels/node_modules: lewm/lab/package.json lewm/lab/package-lock.json
	@mkdir -p build/kernels && cp $^ build/kernels
	npm ci --prefix build/kernels --no-audit --no-fund --loglevel=error
	@touch $@

ablations: .venv/installed  ## the rows of LOG.md: lambda = 0, no batch norm, seeds
	$(BIN)/python -m lewm.experiments.ablations $(ARGS)

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache

.venv/installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(NEW_VENV)
	@echo "installing lewm into .venv (once; PyTorch is the large part)"
	@$(INSTALL) --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	@$(INSTALL) --editable ".[dev]"
	@touch $@

.venv/installed-docs: .venv/installed
	@$(INSTALL) --editable ".[docs]"
	@touch $@
