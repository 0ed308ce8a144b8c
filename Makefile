# Everything a fresh machine needs is done by `setup`, which the other targets share. Nothing touches the system Python.
#   make demo            the whole recipe, from pre-training to PPO
#   make test            unit, integration and end-to-end tests
#   make setup EXTRA=cuda    the same pins for NVIDIA GPUs
#   make setup PYTHON=/path/to/python3.12    another interpreter than the first suitable one found

SHELL := /bin/bash
# cpu or cuda; what is already installed here, else cpu.
EXTRA ?= $(or $(patsubst .venv/.installed-%,%,$(firstword $(wildcard .venv/.installed-*))),cpu)
BIN := .venv/bin
STAMP := .venv/.installed-$(EXTRA)
PACKAGES := $(patsubst %/__init__.py,%,$(wildcard */__init__.py))
DISK_GB := $(if $(filter cuda,$(EXTRA)),16,6)

# uv does not read pip's wheel folders; without one, it knows itself where the right build of torch is.
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif
ifeq ($(EXTRA),cuda)
INSTALL_FLAGS := --torch-backend=auto
else
INSTALL_FLAGS := --override cpu-overrides.txt $(if $(UV_FIND_LINKS),,--torch-backend=cpu)
endif

# A run is a dozen processes that import the same packages: without bytecode files each would compile them again.
unexport PYTHONDONTWRITEBYTECODE

# Tests are many small processes: more than one thread each only gets in the way of the others.
TEST_ENV := OMP_NUM_THREADS=1

.PHONY: setup demo test unit test-isa slow gpu-test chaos cluster-test learn lint clean

setup: $(STAMP)

$(BIN)/uv:
	@python=$$(for p in $(PYTHON) python3 python3.11 python3.12; do \
	  "$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo "$$p" && break; done); \
	if [ -z "$$python" ]; then echo "Quadriga needs Python 3.11 or 3.12 and found neither:" \
	  "install one, or name it with 'make setup PYTHON=/path/to/python3.12'." >&2; exit 2; fi; \
	free=$$(df -Pk . | awk 'NR == 2 {print int($$4 / 1048576)}'); \
	if [ "$$free" -lt $(DISK_GB) ]; then echo "Quadriga needs $(DISK_GB) GB of free disk here for its virtual" \
	  "environment and finds $$free GB: free some, or clone onto another disk." >&2; exit 2; fi; \
	"$$python" -m venv .venv && $(BIN)/python -m pip install --quiet uv

$(STAMP): setup.py cpu-overrides.txt | $(BIN)/uv
	@if ls .venv/.installed-* 2>/dev/null | grep -qvx $@; then \
	  echo "This .venv holds another build of torch: run 'make clean' first." >&2; exit 2; fi
	$(BIN)/uv pip install --python $(BIN)/python $(INSTALL_FLAGS) -e '.[$(EXTRA),dev]'
	@touch $@

demo: setup
	$(BIN)/quadriga run configs/assistant/pipeline.yaml

NUMERIC_TESTS := tests/unit/kernels tests/unit/actors tests/unit/orchestrator/algorithms tests/integration/test_families.py \
  tests/integration/test_zero_equivalence.py tests/integration/test_loss_parts.py tests/integration/test_ppo.py \
  tests/integration/test_precision.py tests/integration/test_resharding.py tests/integration/test_resume.py

test: unit
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/integration tests/examples tests/e2e

unit: setup
	$(TEST_ENV) $(BIN)/python -m pytest -n auto --dist worksteal tests/unit

# A number must not depend on the instruction set: the numeric tests with what older and other CPUs have.
test-isa: setup
	for isa in ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2; do echo "$$isa" && \
	  env $(TEST_ENV) $$isa $(BIN)/python -m pytest -n 2 --dist loadfile $(NUMERIC_TESTS) || exit 1; done

slow: setup
	$(TEST_ENV) $(BIN)/python -m pytest -m slow tests

# What a GPU alone can show, on as many as there are (one or two); prints seconds and bytes beside the plan's.
gpu-test: setup
	$(BIN)/python -m pytest -s tests/gpu

chaos: setup
	$(TEST_ENV) $(BIN)/python -m pytest -m chaos -s tests/integration

cluster-test: setup
	$(TEST_ENV) $(BIN)/python -m pytest -m integration tests/integration/test_cluster.py \
	  tests/integration/test_hosts.py tests/integration/test_slurm.py

learn: setup
	$(TEST_ENV) $(BIN)/python -m pytest -m learn -s tests/e2e

# mypy cannot follow an editable install's import hook: it gets a folder in which `quadriga` is this one.
.typing/quadriga:
	@mkdir -p .typing && ln -sfn .. .typing/quadriga

lint: setup .typing/quadriga
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(PACKAGES:%=-p quadriga.%)
	$(BIN)/lint-imports

clean:
	rm -rf .venv .typing build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
