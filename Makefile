# make setup   a virtual environment in .venv with everything the project needs
# make test    set-up, then all tests
# make demo    set-up, then: synthetic heads, a short training run, a video all the way round (written to demo/)
# make lint    set-up, then the style checks
# make clean   remove what the above made
#
# PYTHON      interpreter to build .venv from, e.g. make setup PYTHON=python3.12
# PIP_FLAGS   further options of pip install, e.g. another index for a CPU or ROCm build of torch
# TEST_FLAGS  further options of pytest, e.g. make test TEST_FLAGS="-m 'not slow'"
# PROCESSES   how many processes run the tests side by side [as many as processors, 4 at most]

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PROCESSES ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); echo $$((n < 4 ? n : 4)))
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

.PHONY: setup test demo lint clean
.DEFAULT_GOAL := setup

setup: $(STAMP)

# The stamp is newer than both files once an installation went through, so that later calls cost nothing.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: no $(PYTHON) here; install Python 3.10 to 3.13, or name it: make setup PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' || \
	    { echo "make: $$($(PYTHON) --version) is not between 3.10 and 3.13; name another: make setup PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	    { echo "make: $(PYTHON) lacks venv or ensurepip; on Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 2; }
	@echo "Setting up $(VENV) (torch alone is 200 MB, or gigabytes where pip takes a CUDA build; minutes on a first run)"
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --disable-pip-version-check --no-input --progress-bar off $(PIP_FLAGS) -c constraints.txt -e '.[dev]' \
	    | sed -un -E 's/^ *((Downloading|Installing|Successfully|Building) .{1,110}).*/  \1/p'
	@touch $@
	@$(PY) -c 'import sys, torch; print(f"Ready: Python {sys.version.split()[0]}, torch {torch.__version__}, CUDA {torch.cuda.is_available()}")'

test: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(PROCESSES) --durations=15 $(TEST_FLAGS)

demo: setup
	$(PY) demo.py --outdir demo

lint: setup
	$(PY) -m ruff check .

clean:
	rm -rf $(VENV) demo build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
