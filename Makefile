# Every target is one command that can be typed by hand; nothing lives here alone.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PY ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS ?= dev,parallel,slurm
TORCH ?= 2.13.0
TORCH_INDEX ?=
CONSTRAINTS ?= constraints.txt
ARGS ?=
RUNS ?= runs
OUT ?= tables
T ?=
F ?=
SWEEP ?=
FMT ?=
RUN ?=
PART ?=
TIER ?=

.PHONY: help setup lock lint format typecheck check test test-slow smoke peers bench bench-check data decontaminate train eval regrade tables figures report claims status plan power verify-tables wandb-sync bars clean clean-tables

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo '  make train ARGS="algo=grpo noise=flip0.3 seed=1"   passes overrides on'
	@echo '  VENV, PY, EXTRAS, TORCH, TORCH_INDEX, CONSTRAINTS steer the set-up; RUNS, OUT, T, FMT the tables'

$(BIN)/.noisyrl: pyproject.toml $(CONSTRAINTS)
	@$(PY) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "noisyrl needs Python 3.11 or newer, this is %s: set PY=python3.12" % sys.version.split()[0])'
	$(PY) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "torch==$(TORCH)"
	$(BIN)/python -m pip install --quiet $(addprefix -c ,$(CONSTRAINTS)) -e ".[$(EXTRAS)]"
	@touch $@

setup: $(BIN)/.noisyrl ## create .venv and install, about two minutes

data: setup ## which public data sets are in data/, and how to fetch the others; downloads nothing
	$(BIN)/python -m noisyrl.tasks.hub

decontaminate: setup ## drop from public training sets what is in a benchmark on this disk; ARGS=light_r1 for one
	$(BIN)/python -m noisyrl.tasks.decontaminate $(ARGS)

train: setup ## run the main job on the embedded testbed; ARGS="algo=grpo ..." overrides
	$(BIN)/python src/train.py $(ARGS)

eval: setup ## score a finished run: RUN=NAME, ARGS="eval=smoke"
	$(BIN)/python src/eval.py run=$(RUN) $(ARGS)

regrade: setup ## grade the stored answers of a run with the rules of today, nothing generated: RUN=NAME
	$(BIN)/python -m noisyrl.evaluation regrade $(RUNS)/$(RUN)

# Products are made again when the content of what they are made of has changed, whatever its time stamps say.
INPUTS = $(BIN)/python -m analysis.inputs $(RUNS) sweeps conf
# $(call made,NAME,FOLDER,COMMAND): the stamp lies beside the products and goes with them.
define made
@stamp="$(2)/.$(1).sha256"; now="$$($(INPUTS)) $(subst ",,$(3))"; \
if [ -f "$$stamp" ] && [ "$$(cat "$$stamp")" = "$$now" ]; then echo "$(1): nothing has changed since $(2)/ was made"; \
else echo '$(3)'; $(3) && mkdir -p $(2) && echo "$$now" > "$$stamp"; fi
endef

tables: setup ## build tables/ from run folders; T=main for one, FMT=md for one format, TIER=smoke, RUNS=, OUT=, ARGS=--full or --wandb
	$(call made,tables,$(OUT),$(BIN)/python -m analysis.tables $(T) --runs $(RUNS) --out $(OUT) $(if $(FMT),--fmt $(FMT)) $(if $(TIER),--tier $(TIER)) $(ARGS))

figures: setup ## draw figures/ from run folders: PDF, PNG and CSV; F=learning_curves for one, SWEEP=main for its runs, RUNS=
	$(call made,figures,figures,$(BIN)/python -m analysis.figures $(F) --runs $(RUNS) $(if $(SWEEP),--sweep $(SWEEP)) $(if $(TIER),--tier $(TIER)))

report: setup ## report/report.html: claims, tables, figures, sweeps and origins on one page; TIER=, RUNS=
	$(call made,report,report,$(BIN)/python -m analysis.report --runs $(RUNS) $(if $(TIER),--tier $(TIER)))

claims: setup ## what our tables say of the claims in analysis/claims.yaml; TIER=, RUNS=, OUT=
	$(BIN)/python -m analysis.claims --runs $(RUNS) --out $(OUT) $(if $(TIER),--tier $(TIER))

status: setup ## how far the sweeps are: planned, finished, failed and why, time left; T=main for one, TIER=, RUNS=
	$(BIN)/python -m analysis.status $(T) --runs $(RUNS) $(if $(TIER),--tier $(TIER))

plan: status ## what a sweep would do before it is started, which is what status says; T=main for one, TIER=, RUNS=

power: setup ## seeds that a difference takes, from the runs there are: T=main, ARGS="--gain 1.5", TIER=, RUNS=
	$(BIN)/python -m analysis.power $(or $(T),main) --runs $(RUNS) $(if $(TIER),--tier $(TIER)) $(ARGS)

verify-tables: setup ## do the committed runs still give the committed tables? with a gap, a failure and a diverged run
	$(BIN)/python -m analysis.verify

wandb-sync: setup ## upload what logger=wandb and tables --wandb kept offline; needs `wandb login`, RUNS=, OUT=
	@found=$$(find $(RUNS) $(wildcard $(OUT)) -type d -path '*/wandb/offline-run-*' -prune); [ -n "$$found" ] || { echo "no offline W&B runs under $(RUNS)/ or $(OUT)/"; exit 1; }; \
	$(BIN)/wandb sync $$found

sweep-%: setup ## run sweeps/%.yaml, the runs behind the table of the same name; TIER=smoke for its small form
	$(BIN)/python src/train.py +sweeps=$* launcher=joblib runs=$(RUNS) $(if $(TIER),tier=$(TIER)) $(ARGS)

smoke: setup ## the smoke sweep and its table, some minutes
	$(BIN)/python src/train.py +sweeps=smoke launcher=joblib runs=$(RUNS) $(ARGS)
	$(BIN)/python -m analysis.tables smoke --runs $(RUNS) --out $(OUT)

$(BIN)/.peers: $(BIN)/.noisyrl
	$(BIN)/python -m pip install --quiet $(addprefix -c ,$(CONSTRAINTS)) -e ".[$(EXTRAS),peers]"
	@touch $@

peers: $(BIN)/.peers ## install what bench compares with (TRL); changes no version of the rest

bench: peers ## measure speed into bench/results, about 15 minutes once warm starts are cached; PART="step rollout", ARGS=--quick
	$(BIN)/python -m bench $(PART) $(ARGS)

bench-check: setup ## the comparison of CI: quick ratios against the committed ones
	$(BIN)/python -m bench $(PART) --check

test: setup ## the default tests, under 8 minutes on two cores, no network
	$(BIN)/python -m pytest -n auto

test-slow: setup ## the crash, learning and command-line comparison tests; learning alone takes about 25 minutes
	$(BIN)/python -m pytest -m slow

bars: setup ## the runs behind the learning bars and their verdicts, about 25 minutes on two cores
	$(BIN)/python -m pytest -m slow -s tests/test_learning.py --runs $(RUNS)

lint: setup ## ruff: style, imports, complexity
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup ## ruff: rewrite in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: setup ## mypy
	$(BIN)/mypy

check: lint typecheck test ## what a change must pass

lock: setup ## rewrite constraints.txt from what is installed
	$(BIN)/python -m pip freeze --exclude-editable --exclude torch > constraints.txt

clean-tables: ## delete tables/
	rm -rf tables

clean: clean-tables ## delete .venv and caches, never runs/
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
