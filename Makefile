# Everything a newcomer types. Each target makes its own virtual environment and is quick when nothing changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
DEMO_ARGS ?=
ONLY ?=
LOCK := $(BIN)/uv pip compile -q --universal --python-version 3.10 --generate-hashes --no-header --no-annotate \
	--no-emit-index-url --no-emit-find-links pyproject.toml --extra onnx --extra hub --extra parquet --extra signing --group build
EXTRAS := $(addprefix --extra ,nats kafka mqtt otlp aws azure images openvino)

.DEFAULT_GOAL := help
.PHONY: help demo test soak check format bench protos azurite perf-analyzer lock wheel clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.run ## A station lives through an outage, in under a minute (DEMO_ARGS="--seconds 15 --report account.json")
	@$(BIN)/outstation demo --out build/demo $(DEMO_ARGS)

test: $(VENV)/.dev ## The everyday tests (PYTEST_ARGS="-k buffer")
	$(BIN)/python -m pytest -m "not soak" $(PYTEST_ARGS)

soak: $(VENV)/.dev ## The long tests: hundreds of kills, cuts and faults
	$(BIN)/python -m pytest -m soak $(PYTEST_ARGS)

check: $(VENV)/.dev ## Format, lint, types, import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy && $(BIN)/mypy tests/typing
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.dev ## Format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.bench ## Benchmarks beside their peers, as a table and build/bench/NAME.json (ONLY=buffer)
	$(BIN)/python tests/bench/run.py $(ONLY)

protos: $(VENV)/.dev ## Generate sdk/outstation/wire/generated from protos/
	$(BIN)/python protos/generate.py

azurite: build/azurite/.installed ## Install the blob service that tests of az:// run against (needs npm)

perf-analyzer: build/perf-analyzer/.installed ## Install NVIDIA's load generator for tests and benchmarks of inference (x86-64)

lock: $(VENV)/.dev ## Resolve pyproject.toml again into requirements/*.txt
	$(LOCK) -o requirements/run.txt --upgrade
	$(LOCK) $(EXTRAS) --group dev -c requirements/run.txt -o requirements/dev.txt
	$(LOCK) $(EXTRAS) --group dev --group bench -c requirements/dev.txt -o requirements/bench.txt

wheel: $(VENV)/.dev ## Build the wheel into dist/
	rm -rf dist && $(BIN)/python -m hatchling build -t wheel

clean: ## Remove what the targets made
	rm -rf $(VENV) build dist

# One environment, three depths: each stamp installs the one before it and a longer lock of the same versions.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Outstation needs Python 3.10 or newer.")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements/run.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/run.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.run
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

build/azurite/.installed: tests/azurite/package-lock.json
	mkdir -p $(@D)
	cp tests/azurite/package.json tests/azurite/package-lock.json tests/azurite/.npmrc $(@D)
	cd $(@D) && npm ci --no-audit --no-fund --ignore-scripts --omit=optional --loglevel=error
	@touch $@

build/perf-analyzer/.installed: requirements/perf-analyzer.txt | $(VENV)/bin/python
	rm -rf $(@D)
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -t $(@D) -r $<
	@touch $@

$(VENV)/.bench: requirements/bench.txt $(VENV)/.dev
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/bench.txt
	@touch $@
