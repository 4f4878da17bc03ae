VENV := .venv
BIN := $(VENV)/bin
# Freed blocks stay with the process: on glibc, page faults of large tensors otherwise stall steps up to tenfold.
STEADY := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456

.PHONY: help demo test test-all test-machines architectures check docs bench study format clean

help:  ## Show the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/.demo  ## Install what the demo needs and run it: real encoder, real words, under 3 minutes on 2 cores.
	HF_HUB_OFFLINE=1 $(STEADY) $(BIN)/bayeslora demo

test: $(VENV)/.dev  ## Install everything and run the tests.
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-all: $(VENV)/.all  ## Run the slow tests too: every architecture in the table (minutes).
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m ""

# Three instruction sets, three shifts of every seed; one thread and two among them.
test-machines: $(VENV)/.dev  ## Run the tests as other processors and with other seeds would (nine times as long).
	failed=0; for capability in default avx2 native; do for seed in 0 1 2; do \
		echo "capability $$capability, base seed $$seed"; \
		test $$capability = native || export ATEN_CPU_CAPABILITY=$$capability; \
		HF_HUB_OFFLINE=1 BAYESLORA_TEST_SEED=$$seed OMP_NUM_THREADS=$$((seed % 2 + 1)) \
		$(BIN)/python -m pytest -n 2 --dist worksteal || failed=1; \
		unset ATEN_CPU_CAPABILITY; \
	done; done; exit $$failed

architectures: $(VENV)/.dev  ## Check every architecture in the table; docs/architectures.md is rewritten (minutes).
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m tests.architectures.survey --to build/architectures.json
	$(BIN)/python -m tests.architectures.page build/architectures.json docs/architectures.md

check: $(VENV)/.dev  ## Lint, format and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.dev  ## Rewrite the lists of methods and tasks, and build the documentation, strictly, into site/.
	HF_HUB_OFFLINE=1 $(BIN)/python docs/lists.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.dev  ## Time training steps against PEFT and between methods, and predictions (minutes).
	$(STEADY) HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/step_time.py
	$(STEADY) HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/method_steps.py
	$(STEADY) HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/prediction_time.py

study: $(VENV)/.dev  ## Repeat the demo over seeds; finished runs are kept, docs/results.md is rewritten (an hour).
	$(STEADY) HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/demo_study.py

format: $(VENV)/.dev  ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove what the other targets made.
	rm -rf $(VENV) site build *.egg-info .pytest_cache .mypy_cache .ruff_cache

# torch goes in first: whatever is installed later finds it there.
$(VENV)/.base:
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	touch $@

$(VENV)/.demo: $(VENV)/.base pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo]"
	touch $@

$(VENV)/.dev: $(VENV)/.base pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo,peft,dev,docs]"
	touch $@ $(VENV)/.demo

$(VENV)/.all: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo,peft,harness,onnx,dev,dev-all,docs]"
	touch $@
