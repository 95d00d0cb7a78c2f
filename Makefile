# make demo [WORK=hour | MINUTES=20] [CODEBOOK=train]
# make test [TEST_FLAGS=--full]   make check   make types   make kernels   make bench   make docs
# make results
# The first use installs the environment, and so does the next one after setup.py or pyproject.toml changed:
# for the demo only its dependencies, for the others all.

PYTHON     ?= python3
WORK       ?= ten-minutes
VENV       := .venv
BIN        := $(VENV)/bin
DEMO_STAMP := $(VENV)/.installed-demo
STAMP      := $(VENV)/.installed
EXTRAS     := demo,hf,eval,triton,dev

# What the tests need includes what the demo needs.
FOR_DEMO := $(shell [ $(STAMP) -nt setup.py ] && [ $(STAMP) -nt pyproject.toml ] && echo $(STAMP) || echo $(DEMO_STAMP))

# Measurements for the pages about distributed training, fastest first: about 40 minutes in all.
RESULTS := communication two_hosts slurm equality two_pass checkpoint_cost faults

# How long the demo runs: a fixed work, or minutes.
LENGTH = $(if $(MINUTES),--minutes $(MINUTES),--work $(WORK))

.PHONY: demo test check types kernels bench docs results
.DELETE_ON_ERROR:

demo: $(FOR_DEMO)
	@$(BIN)/flava-ds demo $(LENGTH) $(if $(CODEBOOK),--codebook $(CODEBOOK)) $(DEMO_FLAGS)

test: $(STAMP)
	@sh .ci/run_tests $(BIN) $(TEST_FLAGS)

check: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_conventions.py
	@$(BIN)/python tests/changed_tests.py

types: $(STAMP)
	@$(BIN)/mypy

# Compiles changed kernels with both versions of Triton, runs their cases and planted bugs, and records all;
# AOT_FLAGS=--update makes the new costs the budget.
kernels: $(STAMP)
	@$(BIN)/python -m flava_kernels.aot --csv kernels/aot.csv $(AOT_FLAGS)
	@$(BIN)/python tests/triton_36.py -m flava_kernels.aot --csv kernels/aot.csv $(AOT_FLAGS)
	@OMP_NUM_THREADS=1 $(BIN)/python tests/kernels/case_record.py
	@OMP_NUM_THREADS=1 $(BIN)/python tests/kernels/mutation_record.py
	@$(BIN)/python docs/fill.py

bench: $(STAMP)
	@$(BIN)/python benchmarks/step_vs_huggingface.py

results: $(STAMP)
	@for name in $(RESULTS); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py || exit; done
	@$(BIN)/python docs/fill.py

# The generated parts of the pages, and the API reference in docs/api/.
docs: $(STAMP)
	@$(BIN)/python docs/fill.py
	@$(BIN)/python docs/api.py

$(DEMO_STAMP): WANTED := demo
$(STAMP): WANTED := $(EXTRAS)
$(DEMO_STAMP) $(STAMP): setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1), but 3.11 or later is needed;" \
	    "name another one with PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || sh .ci/make_venv $(PYTHON) $(VENV)
	@echo "installing flava_ds[$(WANTED)] into $(VENV), once: some minutes, most of them for torch"
	@$(BIN)/python -m pip install --disable-pip-version-check --no-compile --editable '.[$(WANTED)]'
	@# pip would compile on one core; what does not compile is not for this Python, and nobody imports it
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true
	@touch $@
