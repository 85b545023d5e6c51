# The project's vocabulary. `make run` on a fresh machine installs what it needs first.
PYTHON ?= python3
VENV ?= .venv
# Which build of PyTorch: empty takes the package index's (CUDA on Linux); for the CPU build
#   make install TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
TORCH_INDEX_URL ?=
ARGS ?=
BIN := $(VENV)/bin
export DAGSTER_HOME ?= $(CURDIR)

.PHONY: install run ui test test-production test-ui screenshots lint bench clean
.DEFAULT_GOAL := run

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX_URL),$(BIN)/pip install -q --index-url $(TORCH_INDEX_URL) torch==2.13.0)
	$(BIN)/pip install -q -c constraints.txt -e '.[test]'
	touch $@

install: $(VENV)/.installed

run: install
	$(BIN)/triangulation run $(ARGS)

ui: install
	exec $(BIN)/dagster dev -w workspace.yaml $(ARGS)

test: install
	$(BIN)/pytest -n 2 -m "not production and not ui" $(ARGS)

test-production: install
	$(BIN)/pytest -n 2 -m production $(ARGS)

test-ui: install
	$(BIN)/pytest -m ui $(ARGS)

screenshots: install
	UI_SCREENSHOTS=docs/images $(BIN)/pytest -m ui $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .dagster
