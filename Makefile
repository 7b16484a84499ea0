# Everything is a target here; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/vis-run
PAPERS := nie2018 taimeskhanov2024 zhou2018 ayyar2021 sixt2020 rao2022 adebayo2018

.DEFAULT_GOAL := help
.PHONY: help demo reproduce reproduce-quick $(PAPERS) install dev test test-all lint format docs results bench gpu-check clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9_-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed (make PYTHON=python3.12 ...)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(VENV)/installed ## set up .venv with vis-run in it
dev: $(VENV)/installed-dev ## the same with the development tools

demo: $(VENV)/installed ## install, then guided backpropagation on a random VGG-16 and the bundled tabby
	$(RUN) method=gbp model=vgg16_random

# Items with missing weights or data run at the small sizes, on stand-ins, and say so. Run again, each continues where it stopped.
reproduce: ## all papers, everything that can run here, and the report; continues where it was stopped
reproduce-quick: SIZES := preset=small
reproduce-quick: ## the same at reduced sizes
reproduce reproduce-quick: $(VENV)/installed
	-$(RUN) --continue experiment=reproduce $(SIZES)
	$(BIN)/vis-report

nie2018: ## all of Nie et al. 2018 that can run here, on one page
taimeskhanov2024: ## all of Taimeskhanov et al. 2024 that can run here, on one page
zhou2018: ## all of Zhou et al. 2018 that can run here, on one page
ayyar2021: ## all of Ayyar et al. 2021 that can run here, on one page
sixt2020: ## When Explanations Lie (Sixt et al. 2020): do maps forget the later layers?
rao2022: ## GridPG, DiFull and DiPart (Rao et al. 2022): do maps lie in the cell that decides?
adebayo2018: ## the randomisation trial (Adebayo et al. 2018, Binder et al. 2023)
$(PAPERS): $(VENV)/installed
	$(RUN) experiment=$@/all

nie2018-figure4: ## one figure; so for every item of a paper: make nie2018-theorem1, make taimeskhanov2024-table1, ...

$(foreach paper,$(PAPERS),$(eval $(paper)-%: $(VENV)/installed; $(RUN) experiment=$(paper)/$$*))

lint: $(VENV)/installed-dev ## check format, lint, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed-dev ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: lint ## lint, types and the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal -m "not slow" --durations=10

test-all: lint ## all tests: large networks and long runs too
	$(BIN)/python -m pytest --durations=20

docs: $(VENV)/installed-dev ## update docs/methods.md, the pictures of methods that changed (METHOD=rise: of this one) and of the packages
	$(BIN)/python scripts/draw_packages.py
	$(BIN)/python scripts/document_methods.py $(METHOD)

results: $(VENV)/installed ## docs/results.md, ledger.md and what-holds.md: what holds and what fails, from the runs in outputs/
	$(BIN)/vis-report
	mkdir -p docs/results
	cp outputs/results.md outputs/ledger.md outputs/what-holds.md docs/
	cp outputs/results/* docs/results/

bench: $(VENV)/installed-dev ## time the methods against other libraries and compare the results
	$(BIN)/python scripts/bench.py

gpu-check: $(VENV)/installed-dev ## in 8 minutes: a GPU's results against the CPU's, speed and memory, on a page docs/gpu/<its name>.md
	$(BIN)/python scripts/gpu_check.py

clean: ## remove the environment and caches, not outputs/
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
