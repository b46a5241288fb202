# Everything starts here, on a Debian 12 or 13 that has make and a network; `make help` lists it.
# SOAK_SECONDS bounds the long seeded trials, FUZZ_SECONDS the fuzzers; LAB is where the bench images lie.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
LAB ?= /var/tmp/orlop-lab
SOAK_SECONDS ?= 600
FUZZ_SECONDS ?= 600
TEST_WORKERS ?= $(shell expr $$(nproc) + 1)
PYTEST := $(BIN)/python -m pytest
export LAB SOAK_SECONDS
export PYTHONDONTWRITEBYTECODE :=  # the tests start thousands of processes: none should compile anew

.PHONY: help setup compiled lint format test unit integration images check-images recordings soak fuzz bench wheel docs deb demo proto lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what is missing: Debian packages (as root), then .venv
	@tools/setup-system
	@tools/setup-venv $(VENV) requirements/dev.txt project

compiled: setup  # once, also for the users of the tests who may not write here
	@$(BIN)/python -m compileall -q src tests

lint: setup ## ruff, mypy, and the rule of who may import whom
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## let ruff format and fix
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

test: unit integration ## all tests that take minutes; root tests use a disk of their own

unit: compiled ## the tests that need no privilege
	$(PYTEST) -n $(TEST_WORKERS) tests/unit

integration: compiled ## the tests with real tools, mounts and registries
	$(PYTEST) -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder tests/integration

images: setup ## make the bench images, or IMAGES, and a registry for them (20 minutes the first time)
	@tools/setup-system bench
	PYTHON=$(CURDIR)/$(BIN)/python bench/make_images.sh $(IMAGES)

check-images: images ## the bench images' trees beside what GNU tar makes of their layers
	$(PYTEST) -m images --timeout 3600 tests

recordings: compiled ## the moving pictures of docs/images again, by the tests that make them
	ORLOP_RECORD=1 $(PYTEST) tests/integration/test_progress_screens.py

soak: compiled ## the long seeded trials, SOAK_SECONDS in all
	$(PYTEST) -m soak --timeout $$(( SOAK_SECONDS + 600 )) tests

fuzz: ## fuzz all parsers, FUZZ_SECONDS in all
	@tools/setup-venv .cache/venv-fuzz requirements/fuzz.txt
	.cache/venv-fuzz/bin/python fuzz/run.py --seconds $(FUZZ_SECONDS)

bench: setup ## measure beside other tools (as root; QUICK=1: minutes; PARTS="pull reads", ROUNDS=3, CONTAINERD=DIR)
	@[ -n "$(QUICK)" ] || tools/setup-system bench
	@tools/setup-venv .cache/venv-bench requirements/bench.txt
	python=$${BENCH_PYTHON:-$$([ -n "$(QUICK)" ] && echo $(BIN)/python || tools/setup-compiled)} && \
	PYTHON=$(CURDIR)/$(BIN)/python $$python bench/run.py --make-images $(PARTS)

wheel: setup ## a wheel for this Python and machine with the hot loops compiled, in dist/ (minutes)
	ORLOP_COMPILE=1 $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --no-index -w dist .

docs: ## the documentation, in build/docs: html, and man pages; warnings are errors
	@tools/setup-venv .cache/venv-docs requirements/docs.txt
	PYTHONPATH=src .cache/venv-docs/bin/python tools/docs

deb: setup ## a Debian package of this tree, in dist/ (ORLOP_COMPILE=1: with the hot loops compiled)
	packaging/debian/build dist

demo: setup ## the main job, step by step
	tools/demo

proto: ## generate the gRPC stubs again
	@tools/setup-venv .cache/venv-proto requirements/proto.txt
	PATH="$(CURDIR)/.cache/venv-proto/bin:$$PATH" tools/proto

lock: ## choose the newest versions of everything and pin them
	tools/lock

clean: ## remove what these targets made in this folder
	rm -rf .venv .cache build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
