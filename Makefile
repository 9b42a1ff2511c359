# An environment, the main job and the tests, from a checkout:
#
#   make run               the main job, `vtprune run`; its options in ARGS="..."
#   make test              the tests; pytest's options in ARGS="..."
#   make demo              the page on which to see what is kept, `vtprune demo`; its options in ARGS="..."
#   make test-browser      the page in a real browser, where chromium is installed; keeps pictures of every tab
#   make test-matrix       every family on the floor, a middle and the newest release of transformers, in environments
#                          of their own (uv); `-m "not slow"` in ARGS makes it shorter
#   make test-lmms         the lmms-eval plug-in, with the real lmms-eval in an environment of its own (2.4 GB)
#   make lint              ruff: rules and format
#   make bench             what pruning costs in right answers, `vtprune bench`; its options in ARGS="..."
#   make bench-report      the same of every policy on both embedded models, as it is kept in benchmarks/results
#   make bench-engine      the engine's benchmark; its options in ARGS="..."
#   make bench-policies    how long each policy takes to select; its options in ARGS="..."
#   make bench-video       clips, few frames or many, pruned: answers and times; its options in ARGS="..."
#   make bench-decode      what policies of the KV cache save while decoding and cost in answers; its options in ARGS
#   make bench-kernels     each operation of vtprune_kernels against plain torch and the machine's limit; ARGS="..."
#   make clean             removes the environment and what was built
#
# The environment is made once and renewed when pyproject.toml or the constraints change. To override, by name:
#
#   PYTHON=python3.12      the interpreter that makes the environment (the pins are for 3.11: see CONSTRAINTS)
#   VENV=/tmp/env          where the environment is, without spaces
#   CONSTRAINTS=           no pins: the newest versions that pyproject.toml allows; or another file of pins
#   TORCH="torch==2.11.*"  installed together with the rest, for instance the torch that suits a CUDA driver
#   VENV_FLAGS=--system-site-packages   uses the packages that are installed already, for instance torch with its CUDA
#   PIP_FLAGS="-q"         further options of pip install
#   JOBS=2                 processes of `make test`
#
# On a machine with a GPU the pinned torch works where its CUDA suits the driver; else, for instance,
#   make test CONSTRAINTS= VENV_FLAGS=--system-site-packages
# After a change of these, `make clean` first.

PYTHON ?= python3
VENV ?= .venv
LMMS_VENV ?= .venv-lmms
CONSTRAINTS ?= requirements/ci.txt
TORCH ?=
VENV_FLAGS ?=
PIP_FLAGS ?=
JOBS ?= 2
ARGS ?=

RUN := "$(VENV)/bin/python"
INSTALL := $(RUN) -m pip install --disable-pip-version-check $(PIP_FLAGS) $(if $(CONSTRAINTS),-c "$(CONSTRAINTS)") $(TORCH)

.PHONY: run demo test test-browser test-matrix test-lmms lint bench bench-report bench-engine bench-policies bench-video bench-decode bench-kernels install install-test clean

run: install
	"$(VENV)/bin/vtprune" run $(ARGS)

demo: install
	$(INSTALL) -e ".[demo]"
	"$(VENV)/bin/vtprune" demo $(ARGS)

# gpu tests are not left out but skipped, so that the summary says so
test: install-test
	$(RUN) -m pytest -n $(JOBS) -m "not slow" -rs $(ARGS)

# also those that `make test` leaves out; with Debian's chromium, skipped, with that reason, where there is none
test-browser: install-test
	$(RUN) -m pytest tests/demos/browser -rs $(ARGS)

# all combinations, slow tests included, unless ARGS says otherwise
test-matrix: install-test
	$(INSTALL) uv
	PYTHONPATH=.:kernels $(RUN) -m tests.versions --jobs $(JOBS) $(ARGS)

# lmms-eval pins av below 16
test-lmms: $(LMMS_VENV)/.installed
	"$(LMMS_VENV)/bin/python" -m pytest --noconftest tests/lmms -rs $(ARGS)

lint: $(VENV)/.installed-lint
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

bench: install
	$(INSTALL) -e ".[bench]"
	"$(VENV)/bin/vtprune" bench $(ARGS)

bench-report: install
	$(INSTALL) -e ".[bench,video]"
	$(RUN) -m benchmarks.report $(ARGS)

bench-engine: install
	$(RUN) -m benchmarks.engine $(ARGS)

bench-policies: install
	$(RUN) -m benchmarks.policies $(ARGS)

bench-video: install
	$(INSTALL) -e ".[bench,video]"
	$(RUN) -m benchmarks.video $(ARGS)

bench-decode: install
	$(RUN) -m benchmarks.decode $(ARGS)

bench-kernels: install-test
	$(INSTALL) -e ".[bench]"
	$(RUN) -m benchmarks.kernels $(ARGS)

install: $(VENV)/.installed

install-test: $(VENV)/.installed-test

$(VENV)/bin/python:
	"$(PYTHON)" -m venv $(VENV_FLAGS) "$(VENV)"

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(INSTALL) -e ".[video]"
	touch "$@"

$(VENV)/.installed-test: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(INSTALL) -e ".[dev,kernels,video,bench,ray,demo]"
	touch "$@"

$(VENV)/.installed-lint: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(INSTALL) "ruff>=0.12"
	touch "$@"

$(LMMS_VENV)/.installed: pyproject.toml tests/lmms/constraints.txt
	"$(PYTHON)" -m venv "$(LMMS_VENV)"
	"$(LMMS_VENV)/bin/python" -m pip install --disable-pip-version-check -c tests/lmms/constraints.txt $(PIP_FLAGS) lmms-eval pytest -e .
	# a torchvision that does not fit torch stops every image processor; without CUDA there is none that does
	"$(LMMS_VENV)/bin/python" -c "import torch, sys; sys.exit(torch.version.cuda is not None)" && "$(LMMS_VENV)/bin/python" -m pip uninstall -y torchvision || true
	touch "$@"

clean:
	rm -rf "$(VENV)" "$(LMMS_VENV)" .venv-matrix build dist .pytest_cache .ruff_cache .hypothesis
	find vtprune kernels benchmarks demos tests -name __pycache__ -type d -prune -exec rm -rf {} +
