# Everything a checkout can do. ARGS="..." is passed on: make train ARGS="steps=2000 model=nucleus_x_tiny"
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
ARGS ?=
# How many processes share the tests; some tests start two more.
JOBS ?= 2
# Decides the moments of the fault tests; printed with their table.
SEED ?= $(shell date +%s)
# As many of this machine's GPUs as divide the batch, or two processes on the CPU, where DeepSpeed need
# not look for a GPU and say so.
GPUS = $(shell $(BIN)/python -c "import torch; n = torch.cuda.device_count(); print(max(p for p in (0, 1, 2, 4, 8) if p <= n))")
LAUNCH = $(if $(filter 0,$(GPUS)),DS_ACCELERATOR=cpu $(BIN)/deepspeed --num_gpus 2,$(BIN)/deepspeed --num_gpus $(GPUS)) --quiet

.PHONY: help setup train prepare report test test-faults bench lint format
.DEFAULT_GOAL := help

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

setup: $(READY)  ## Make .venv with the pinned dependencies, nothing else

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

train: $(READY)  ## Train the small default model on this machine, or go on where it stopped
	@$(LAUNCH) train.py $(ARGS)

prepare: $(READY)  ## Make token shards of any text: ARGS="data=... out=FOLDER"
	$(BIN)/python -m data.prepare $(ARGS)

report: $(READY)  ## Write report.html, with its pictures: ARGS="runs/a runs/b" compares
	@$(BIN)/python -m retnet.report $(or $(ARGS),runs/first-run)

test: $(READY)  ## Prove the laws: every test there is
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

test-faults: $(READY)  ## Kill, hang, fill, cut off: the long form of the fault tests; SEED=7 repeats its moments
	$(BIN)/python -m pytest tests/faults -m "long or not long" --seed $(SEED) $(ARGS)

bench: $(READY)  ## Measure speed beside attention, Llama and other RetNets: ARGS="c3 c6"
	$(BIN)/python -m tests.benchmarks $(ARGS)

lint: $(READY)  ## Check style
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: $(READY)  ## Mend style
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .
