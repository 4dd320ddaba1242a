# `make demo` and `make test` need Python 3.11 or newer and nothing else; both set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
STAMP := $(VENV)/.installed

.PHONY: install demo test chaos bench bench-broker lint lock clean

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "chroma-sync needs Python 3.11 or newer; give one with PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) uv==0.13.9
	# uv takes seconds where pip takes a minute; pip knows of mirrors that only its own configuration
	# names, so it has the second try.
	$(BIN)/uv pip install --quiet --system-certs --compile-bytecode --python $(BIN)/python \
		--no-deps -r requirements.lock || $(PIP) --no-deps -r requirements.lock
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

demo: install
	$(BIN)/python -m deploy.demo.demo

test: install
	$(BIN)/python -m pytest -m "not chaos"

# The long fault scenarios: at most 15 minutes.
chaos: install
	$(BIN)/python -m pytest -m chaos tests/chaos

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Pins everything that pyproject.toml asks for, for all platforms and Python versions at once.
lock: install
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --all-extras \
		--no-annotate --no-header --upgrade -o requirements.lock pyproject.toml

# Some 8 minutes. Other sizes: make bench ARGS="--size 384:5000 --rounds 1"
bench: install
	$(BIN)/python -m tests.benchmarks.sync $(ARGS)

bench-broker: install
	$(BIN)/python -m tests.benchmarks.broker

clean:
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
