# `make demo` and `make test` do all the set-up they need; see CONTRIBUTING.md. `make help` lists the targets.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup venv demo test test-fast lint format bench bundle results wheel-check clean distclean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
OUT ?= demo_out
BAG ?=
SCENARIO ?=
RIG ?=
JOBS ?= 2
PYTEST_ARGS ?=
RUN ?= runs/tiny
BUNDLE ?= $(RUN)/bundle
RUNS ?= runs
PYTEST_PARALLEL := pytest -q -n $(JOBS) --dist worksteal -o timeout_method=thread
ROS_TESTS := $(wildcard test/nodes test/launch)

# Nothing of the demo or the tests leaves this machine, and no robot on the network answers them.
export ROS_AUTOMATIC_DISCOVERY_RANGE ?= LOCALHOST

IN_WORKSPACE := source scripts/env.sh &&
IN_VENV := PATH="$(CURDIR)/.venv/bin:$$PATH"

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## .venv with ROS 2 and all dependencies, messages and package built
	@$(PYTHON) scripts/workspace.py build

venv:
	@$(PYTHON) scripts/workspace.py venv

demo: setup ## drive SCENARIO (or play BAG=path, RIG=file) over ROS 2, leave OUT=demo_out/report.html
	@$(IN_WORKSPACE) python -m e2e_perception.cli demo --out "$(OUT)" $(if $(SCENARIO),--scenario "$(SCENARIO)") \
	  $(if $(BAG),--bag "$(BAG)") $(if $(RIG),--rig "$(RIG)")

# Two passes: plain tests side by side, then those that talk over DDS or keep real time, one after the other.
# The first ends a worker that hangs (hypothesis would swallow an exception and hang again), shows where it was and
# starts another; the second has one process, which has to survive.
# Exit code 5 is pytest's "nothing was collected to run", which is fine where every module of a pass was skipped.
test: setup ## every test that this machine can run, and why the others were not
	@$(IN_WORKSPACE) status=0; \
	OMP_NUM_THREADS=1 $(PYTEST_PARALLEL) test $(addprefix --ignore=,$(ROS_TESTS)) \
	  $(PYTEST_ARGS) || status=$$?; \
	[ -z "$(ROS_TESTS)" ] || pytest -q $(ROS_TESTS) $(PYTEST_ARGS) || { code=$$?; [ $$code -eq 5 ] || status=$$code; }; \
	exit $$status

test-fast: setup ## the same without slow tests and without ROS nodes
	@$(IN_WORKSPACE) OMP_NUM_THREADS=1 $(PYTEST_PARALLEL) -m "not slow" test \
	  $(addprefix --ignore=,$(ROS_TESTS)) $(PYTEST_ARGS)

lint: venv ## ruff and mypy
	@export $(IN_VENV); status=0; \
	ruff check . || status=1; ruff format --check . || status=1; mypy || status=1; exit $$status

format: venv ## let ruff rewrite what it can
	@$(IN_VENV) ruff check --fix .
	@$(IN_VENV) ruff format .

bench: setup ## every benchmarks/bench_*.py
	@$(IN_WORKSPACE) status=0; for file in benchmarks/bench_*.py; do \
	  echo "== $$file"; python "$$file" || status=$$?; done; exit $$status

bundle: setup ## simulate what the shipped bundle saw, train a `tiny` from nothing, export it to BUNDLE; resumable
	@$(IN_WORKSPACE) set -e; clips="python -m e2e_perception.cli simulate --format clips --suite train \
	  --clip-length 10 --stride 1.5"; \
	$$clips --out $(RUN)/clean --part 1/4; \
	$$clips --out $(RUN)/disturbed --part 2/8 --disturb; \
	$$clips --out $(RUN)/obstacles --family debris; \
	python -m e2e_perception.cli train --data $(RUN)/clean --data $(RUN)/disturbed --data $(RUN)/obstacles \
	  --out $(RUN)/run --config tiny --tracking none; \
	python -m e2e_perception.cli export $(RUN)/run --best --data $(RUN)/clean --max-clips 120 --out $(BUNDLE)

results: venv ## every table of docs/results.md that comes from experiments, anew (about 13 hours of two cores); resumable, without ROS
	@export $(IN_VENV); set -e; run="python scripts/run_experiments.py"; \
	$$run learning-rate --out $(RUNS)/rate --only clips train; \
	$$run nano --out $(RUNS)/nano; \
	$$run ablations --out $(RUNS)/ablations --only clips train; \
	python scripts/measure_drives.py --out $(RUNS)/drives; \
	python scripts/measure_robustness.py --bundle tiny --suite test --groups lost --out $(RUNS)/lost; \
	python scripts/measure_robustness.py --bundle tiny --suite critical --groups degraded --out $(RUNS)/degraded; \
	python scripts/write_results.py --experiment $(RUNS)/nano --rates $(RUNS)/rate --ablations $(RUNS)/ablations \
	  --drives $(RUNS)/drives/drives.json --bundle tiny \
	  --robustness $(RUNS)/lost/robustness.json $(RUNS)/degraded/robustness.json

wheel-check: venv ## `pip install .` without ROS, into a throw-away environment
	@.venv/bin/python scripts/check_wheel.py

clean: ## remove what was built; .venv stays
	rm -rf build install log dist demo_out .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find e2e_perception test benchmarks launch scripts -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## the same, and .venv
	rm -rf .venv
