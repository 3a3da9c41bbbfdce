# Every command of the repository. `make` alone explains itself.
# Nothing is asked of the machine but Python 3.11 with pip, make and git; slides also need Node.js.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
# Two `dvc repro` in one checkout block each other; for papers side by side see docs/scale-out.md.
.NOTPARALLEL:

# The interpreter that makes .venv; found by tools/setup.sh when not given.
PYTHON ?=
# Processes of pytest, one thread each.
JOBS ?= 2
# What to hand to pytest, e.g. make test TESTS='tests/shared -k claims'
TESTS ?=

RUN := .venv/bin/python

# The nine names come from shared/paths.py; what exists is what has a pipeline.
PAPERS := $(shell sed -n '/^PAPERS = (/,/^)/s/^ *"\(.*\)",$$/\1/p' shared/paths.py)
EXISTING := $(patsubst papers/%/dvc.yaml,%,$(wildcard $(PAPERS:%=papers/%/dvc.yaml)))

##@ Results
.PHONY: setup
setup: ## make the environment .venv (once; later runs return at once)
	@tools/setup.sh $(PYTHON)

.PHONY: reproduce
reproduce: need-paper setup ## from nothing to results and report: make reproduce PAPER=nvae [PRESET=gpu]
	@tools/reproduce.sh $(PAPER) $(PRESET)

.PHONY: $(PAPERS)
$(PAPERS): # the same by name: make nvae
	@$(MAKE) reproduce PAPER=$@

.PHONY: data
data: setup ## fetch and check data sets: make data [ONLY="mnist cifar10"]
	@$(RUN) -m shared.data.fetch $(ONLY)

.PHONY: report
report: need-paper setup ## draw a report again from its records: make report PAPER=nvae
	@$(RUN) -m shared.report.publish $(PAPER)

.PHONY: record
record: need-paper setup ## pack a run made without DVC: make record PAPER=nvae PRESET=gpu [FIGURES="a.png"]
	@[[ -n "$(PRESET)" ]] || { echo "error: say which run: make record PAPER=$(PAPER) PRESET=gpu" >&2; exit 1; }
	@$(RUN) -m shared.report.record $(PAPER) --preset $(PRESET) $(if $(FIGURES),--figures $(FIGURES))

.PHONY: benchmark
benchmark: need-paper setup ## time a paper's step against a plain baseline: make benchmark PAPER=nvae
	@$(RUN) -m benchmarks.$(PAPER)

.PHONY: slides
slides: need-paper need-node setup node_modules/.package-lock.json ## the talk as one HTML file and a PDF: make slides PAPER=nvae
	@$(RUN) -m shared.report.slides $(PAPER)

# npm writes this file last; it is newer than package-lock.json exactly when the packages are in place.
node_modules/.package-lock.json: package-lock.json
	@echo "installing the slide builder into node_modules (once)"
	@npm ci --no-audit --no-fund --loglevel=error

##@ Development
.PHONY: test
test: setup ## every test that runs without a network, a GPU and the full data (some minutes on two cores)
	@$(RUN) -m pytest -n $(JOBS) --dist worksteal -m "not data and not gpu" $(TESTS)

.PHONY: test-quick
test-quick: setup ## the same without the slow tests
	@$(RUN) -m pytest -n $(JOBS) --dist worksteal -m "not data and not gpu and not slow" $(TESTS)

.PHONY: test-data
test-data: setup ## the loaders on the full data sets in data/
	@$(RUN) -m pytest -m data $(TESTS)

.PHONY: test-gpu
test-gpu: setup ## the tests that need a CUDA device
	@$(RUN) -m pytest -m gpu $(TESTS)

.PHONY: lint
lint: setup ## style and types, nothing is changed
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

.PHONY: format
format: setup ## mend the style in place
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

.PHONY: lock
lock: ## write constraints.txt anew from requirements.txt and requirements-dev.txt
	@tools/lock.sh $(PYTHON)

.PHONY: clean
clean: ## remove caches; with CONFIRM=1 also .venv, data/, the DVC cache and the states of interrupted runs
	@find . \( -name .venv -o -name .git -o -name node_modules \) -prune -o -type d -name __pycache__ -print0 | xargs -0r rm -rf
	@rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
ifeq ($(CONFIRM),1)
	rm -rf .venv node_modules data .downloads .dvc/cache .dvc/tmp .ckpt
else
	@for kept in .venv node_modules data .downloads .dvc/cache .ckpt; do [[ ! -e $$kept ]] || echo "kept: $$kept ($$(du -sh $$kept | cut -f1)); make clean CONFIRM=1 removes it"; done
endif

.PHONY: help
help: ## this text
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "Papers: $(PAPERS)"
	@echo "  here: $(or $(EXISTING),none yet)"

.PHONY: need-paper
need-paper:
ifeq ($(filter $(PAPER),$(PAPERS)),)
	@echo "error: $(if $(PAPER),unknown PAPER=$(PAPER),say which paper, e.g. PAPER=nvae); the nine are: $(PAPERS); here so far: $(or $(EXISTING),none)" >&2; exit 1
else ifeq ($(filter $(PAPER),$(EXISTING)),)
	@echo "error: $(PAPER) has no pipeline yet (papers/$(PAPER)/dvc.yaml is missing); here so far: $(or $(EXISTING),none)" >&2; exit 1
endif

.PHONY: need-node
need-node:
	@command -v npm >/dev/null || { echo "error: Node.js with npm is missing, slides need it (Debian: sudo apt install nodejs npm)" >&2; exit 1; }
