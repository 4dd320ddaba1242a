# `make demo` and `make test` need Python 3.11 or newer and nothing else; both set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
STAMP := $(VENV)/.installed
OLD_CHROMA := $(VENV)/chroma-0.6.3

.PHONY: install demo test chaos bench bench-scale bench-targets bench-broker lint lock clean

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

# The oldest Chroma that is supported, in an environment of its own, for the tests that copy from it
# and to it. It has no wheels for Python 3.13 or newer; where uv finds no older one either, those
# tests are skipped.
$(OLD_CHROMA)/.installed: tests/chroma-0.6.3.txt | $(STAMP)
	rm -rf $(OLD_CHROMA)
	if $(BIN)/uv venv --quiet --system-certs $(OLD_CHROMA) --python $$($(BIN)/python -c \
		'import sys; print(sys.executable if sys.version_info < (3, 13) else "3.12")'); then \
		{ $(BIN)/uv pip install --quiet --system-certs --compile-bytecode --no-deps -r $< \
			--python $(OLD_CHROMA)/bin/python || $(BIN)/python -m pip --python \
			$(OLD_CHROMA)/bin/python install --quiet --disable-pip-version-check --no-deps -r $<; \
		} && touch $@; \
	fi

demo: install
	$(BIN)/python -m deploy.demo.demo

test: install $(OLD_CHROMA)/.installed
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
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras \
		--no-annotate --no-header --upgrade -o requirements.lock pyproject.toml
	printf 'chromadb==0.6.3\nnumpy<2\n' | $(BIN)/uv pip compile --quiet --universal \
		--python-version 3.11 --no-annotate --no-header --upgrade -o tests/chroma-0.6.3.txt -

# Half an hour. Other sizes: make bench ARGS="--size 384:5000 --rounds 1"
bench: install
	$(BIN)/python -m tests.benchmarks.sync $(ARGS)

# Half an hour. Other sizes: make bench-scale ARGS="--sizes 5000,20000"
bench-scale: install
	$(BIN)/python -m tests.benchmarks.scale $(ARGS)

# Eight minutes. Others: make bench-targets ARGS="--workers 4 --rounds 1"
bench-targets: install
	$(BIN)/python -m tests.benchmarks.targets $(ARGS)

bench-broker: install
	$(BIN)/python -m tests.benchmarks.broker

clean:
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
