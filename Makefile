# Needs make and Python 3.11 or later, nothing else. `make` alone prints the menu.

PYTHON ?= python3
VENV := .venv
# The tool that writes the lock lives apart, so that it is never part of what it locks.
LOCKER := .cache/lock
# Tests of one file share what they compiled, so a file stays with one worker.
WORKERS := --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder
PYTEST := PYTHONPATH=$(VENV)/libtpu $(VENV)/bin/python -m pytest $(WORKERS)
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env demo lint types docs test coverage lock clean python

help: ## Show this menu
	@echo "usage: make TARGET [PYTHON=python3.12]"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

env: $(VENV)/project.stamp ## Install the locked packages and the project in .venv

demo: env ## Install, then train a small block-recurrent language model on real text
	$(VENV)/bin/python -m experiments.block_recurrent \
		--config=configs/block_recurrent.py:demo --workdir=runs/demo

lint: $(VENV)/lock.stamp ## Check style and format of all code, notebooks included
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

types: $(VENV)/lock.stamp ## Check the types of jaxlab, and of a script that uses it
	$(VENV)/bin/python -m mypy

docs: $(VENV)/lock.stamp ## Build the site in build/docs; a warning is an error
	$(VENV)/bin/python -m sphinx --builder html --fail-on-warning --keep-going --quiet \
		--doctree-dir build/doctrees docs build/docs
	@echo "the site is build/docs/index.html"

test: env $(VENV)/libtpu.stamp ## Run every test, and name the slowest
	$(PYTEST) --durations=20

coverage: env $(VENV)/libtpu.stamp ## Run every test and list the lines that none reaches
	$(PYTEST) --cov --cov-report=term-missing:skip-covered --cov-report=html:build/coverage

lock: python ## Resolve the newest allowed packages into requirements/lock.txt
	"$(PYTHON)" -m venv --clear $(LOCKER)
	$(LOCKER)/bin/python $(PIP_INSTALL) uv
	$(LOCKER)/bin/python -m uv pip compile setup.py requirements/build.in \
		--extra docs --extra lint --extra test --universal --python-version 3.11 --generate-hashes --upgrade --quiet \
		--custom-compile-command "make lock" --output-file requirements/lock.txt
	$(LOCKER)/bin/python -m uv pip compile requirements/libtpu.in --quiet --no-annotate --no-header \
		--constraint requirements/lock.txt --universal --python-version 3.11 --generate-hashes \
		| awk '/^[^ ]/ { wanted = /^libtpu/ } wanted' > requirements/libtpu.txt

clean: ## Remove .venv, caches and build outputs (what runs wrote in runs/ stays)
	rm -rf .venv .cache .pytest_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

python:
	@"$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit("jaxlab needs Python 3.11 or later, but $(PYTHON) is Python %d.%d; name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12" % v)'

# The environment is rebuilt whole when the lock changes: no package of an older lock stays.
$(VENV)/lock.stamp: requirements/lock.txt | python
	@echo "installing the packages of requirements/lock.txt in $(VENV) (about 1 GB)"
	"$(PYTHON)" -m venv --clear $(VENV)
	$(VENV)/bin/python $(PIP_INSTALL) --requirement requirements/lock.txt
	@touch $@

# The TPU compiler, for the tests that plan for TPUs, lies apart: no other command looks for a TPU.
$(VENV)/libtpu.stamp: $(VENV)/lock.stamp requirements/libtpu.txt
	$(VENV)/bin/python $(PIP_INSTALL) --no-deps --upgrade --target $(VENV)/libtpu \
		--requirement requirements/libtpu.txt
	@touch $@

$(VENV)/project.stamp: $(VENV)/lock.stamp setup.py pyproject.toml jaxlab/_version.py
	$(VENV)/bin/python $(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@
