# Needs Python >= 3.11 and make, nothing else. `make` alone lists the targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

DEMO          := demo
DEMO_PATIENTS ?= 2000
DEMO_SEED     ?= 0

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-slow lint types docs figures bench clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  \1|\2/' | awk -F'|' '{printf "%-12s%s\n", $$1, $$2}'
	@echo "  PYTHON=$(PYTHON) chooses the interpreter that $(VENV) is made with."

setup: $(STAMP) ## Create .venv and install the project with its tools (again only when pyproject.toml changes)

# The stamp is written last: an interrupted installation is taken up again, a finished one is not repeated.
$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "error: '$(PYTHON)' was not found; name another, as in: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1); Python >= 3.11 is needed. Name another, as in: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@[ ! -x $(BIN)/python ] || $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(VENV) holds a Python older than 3.11; remove $(VENV) and run this again" >&2; exit 1; }
	@[ -x $(BIN)/python ] || { echo "==> creating $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(VENV); } || { echo "error: $(PYTHON) -m venv failed; on Debian and Ubuntu install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	@echo "==> installing mmnar-lightning and its tools into $(VENV) (PyTorch is large: some minutes the first time)"
	@$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev,docs]'
	@touch $@
	@echo "==> ready: $(BIN)/mmnar --help"

# Each step is idempotent: an extract or store that is there is kept, a run that was interrupted goes on.
demo: $(STAMP) ## Simulate an extract, prepare it, train, test, predict, report: a whole run in minutes
	@echo "==> 1/6 simulating $(DEMO_PATIENTS) patients in eICU's raw layout (seed $(DEMO_SEED))"
	@$(BIN)/mmnar simulate eicu $(DEMO)/extract --patients $(DEMO_PATIENTS) --seed $(DEMO_SEED)
	@echo "==> 2/6 preparing the record store"
	@$(BIN)/mmnar prepare --config configs/demo.yaml
	@echo "==> 3/6 training"
	@$(BIN)/mmnar fit --config configs/demo.yaml --resume auto
	@echo "==> 4/6 testing"
	@$(BIN)/mmnar test --config configs/demo.yaml
	@echo "==> 5/6 predicting"
	@$(BIN)/mmnar predict --config configs/demo.yaml
	@echo "==> 6/6 reporting"
	@$(BIN)/mmnar report $(DEMO)/run --out $(DEMO)/report.html --model-card $(DEMO)/model-card.md
	@echo "==> done; $(DEMO)/ holds the extract, the store and the run"
	@echo "    live view:   $(BIN)/tensorboard --logdir $(DEMO)/run"
	@echo "    predictions: $(DEMO)/run/predictions.parquet"
	@echo "    report:      $(DEMO)/report.html (open it in a browser), $(DEMO)/model-card.md"

test: $(STAMP) ## Run the tests; those on real records run where the open demo extracts are found
	@echo "==> tests"
	@$(BIN)/python -m pytest -m 'not slow'

test-slow: $(STAMP) ## Run the tests that take minutes
	@echo "==> slow tests"
	@$(BIN)/python -m pytest -m slow

lint: $(STAMP) ## Check style and format (ruff)
	@echo "==> lint"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP) ## Check types (mypy --strict)
	@echo "==> types"
	@$(BIN)/mypy

docs: $(STAMP) ## Build the documentation into site/; any warning fails
	@echo "==> docs"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "==> open site/index.html"

figures: $(STAMP) ## Draw the pictures of the documentation
	@$(BIN)/python docs/assets/make_figures.py

bench: $(STAMP) ## Run the benchmarks into benchmarks/results; EICU=FOLDER, MIMIC=FOLDERS and ATTAINABLE=1 add long ones
	@echo "==> benchmarks/loading.py"
	@$(BIN)/python benchmarks/loading.py
	@echo "==> benchmarks/images.py"
	@$(BIN)/python benchmarks/images.py
	@echo "==> benchmarks/text.py"
	@$(BIN)/python benchmarks/text.py
	@echo "==> benchmarks/embed.py"
	@$(BIN)/python benchmarks/embed.py
ifdef ATTAINABLE
	@echo "==> benchmarks/attainable.py"
	@$(BIN)/python benchmarks/attainable.py
endif
ifdef MIMIC
	@echo "==> benchmarks/prepare_mimic4.py"
	@$(BIN)/python benchmarks/prepare_mimic4.py --root $(MIMIC)
endif
ifdef EICU
	@echo "==> benchmarks/prepare_eicu.py"
	@$(BIN)/python benchmarks/prepare_eicu.py --root $(EICU)
	@echo "==> benchmarks/eicu_folds.py"
	@$(BIN)/python benchmarks/eicu_folds.py --root $(EICU) --data.init_args.splits.split_seed 1
endif

clean: ## Remove what builds and tools leave behind, and the demo (never .venv, stores/ or runs/)
	@rm -rf site build dist $(DEMO) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	@echo "==> clean"
