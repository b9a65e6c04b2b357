# Two commands: `make demo` and `make test`. Both make .venv when it is missing; Python 3.11, make and git are all they need.
PYTHON  ?= python3.11
VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
COMPILE := uv pip compile --generate-hashes --no-emit-index-url --no-annotate --python-version 3.11 --extra dev

export VIRTUAL_ENV := $(CURDIR)/$(VENV)
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup lock lint format test test-quick test-cluster test-rest test-system bench demo stop docs

setup: $(STAMP)

# The lock has hashes and no index host, so uv's and pip's own settings say where packages come from; where uv's do not,
# pip's may. setuptools is in the lock: this package is installed from it, in place, without a build environment.
$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
	test -x $(BIN)/uv || { awk '/^uv==/ {on = 1} on {print} on && !/\\$$/ {exit}' requirements.lock >$(VENV)/uv.txt \
	  && $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $(VENV)/uv.txt; }
	$(BIN)/uv pip install --quiet --compile-bytecode --require-hashes -r requirements.lock \
	  || $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-build-isolation --editable .
	touch $@

lock:
	$(COMPILE) pyproject.toml -o requirements.lock

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Two processes at a time: one has the session's one cluster and all that needs it, in order; the other has the rest.
test: lint
	$(MAKE) --no-print-directory --jobs 2 test-cluster test-rest

test-cluster: setup
	$(BIN)/python -m pytest -m "clustered and not system"

test-rest: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not clustered and not system"

# The foundations alone, without Ray: what to run at every step.
test-quick: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/core tests/config tests/curate tests/test_imports.py -m "not clustered and not system"

# Needs Debian packages (chromium, ...), which .ci/run installs.
test-system: setup
	$(BIN)/python -m pytest -m system

bench: setup
	@test -n "$(NAME)" || { echo "make bench NAME=<name>, one of: $$(cd benchmarks && ls [a-z]*.py | sed 's/\.py//' | tr '\n' ' ')"; exit 2; }
	$(BIN)/python -m benchmarks.$(NAME)

demo: setup
	$(BIN)/python jobs/demo.py $(if $(DATA),--data "$(DATA)")

stop: setup
	$(BIN)/python jobs/demo.py --stop

docs: setup
	$(BIN)/mkdocs build --strict
