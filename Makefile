# One virtual environment for everything: .venv/. `make help` lists the targets.
SHELL := bash
PYTHON ?= python3
BIN := .venv/bin

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

demo: .venv/demo ## digits to a generated dataset and a report, in demo/ (five to seven minutes on 2 cores)
	$(BIN)/python -m jobs.demo

demo-s3: .venv/dev ## the same demo with all its outputs in a local S3 server, in demo-s3/
	$(BIN)/python -m jobs.demo_s3

test: check pytest ## everything CI runs: format, lint, types, import rules, tests

check: .venv/dev ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports --verbose

# Tests without Ray, S3 and a browser share the processors; those with them come after, two files at a time, as they wait a
# third of their time. Coverage slows what it counts, so it stays out of Ray's workers: their loops show only where a test
# calls them itself.
ALONE := ray or s3 or browser or slow
pytest: .venv/dev browser ## the tests, and which lines they reach
	$(BIN)/coverage erase
	COVERAGE_PROCESS_START=$(CURDIR)/pyproject.toml $(BIN)/python -m pytest -n logical --dist loadfile -m "not ($(ALONE) or faults)"
	COVERAGE_PROCESS_START=$(CURDIR)/pyproject.toml $(BIN)/python -m pytest -n 2 --dist loadfile -m "($(ALONE)) and not faults" --durations=20
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

quick: .venv/dev ## the fast half of the tests, without Ray, S3 and a browser (six minutes on 2 cores)
	$(BIN)/python -m pytest -q -n logical --dist loadfile -m "not ($(ALONE) or faults)"

# The page is tested in Debian's Chromium; where it is not and cannot be installed, those tests are skipped and say so.
browser:
	@test -x /usr/bin/chromium || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
	  && apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y chromium >/dev/null; } \
	  || echo "no /usr/bin/chromium here: the page's tests will be skipped" >&2

BASE ?= HEAD
same-bytes: .venv/dev ## do BASE (a commit) and the working tree make the same bytes? (about 4 minutes on 2 cores)
	$(BIN)/python -m tests.support.same_bytes --base $(BASE)

# Examples of fuzzing per reader grow with the minutes: ten for each take about a fifth of that time more.
SEED ?= 1
MINUTES ?= 30
faults: .venv/dev ## fuzzing, store faults, then MINUTES (30) of seeded runs that are disturbed, from SEED (1)
	RAY_DIT_FUZZ=$$((10 * $(MINUTES))) $(BIN)/python -m pytest -q tests/fuzz
	RAY_DIT_STORE_OPERATIONS=10000 $(BIN)/python -m pytest -q tests/faults --ignore tests/faults/test_harness.py
	RAY_DIT_KILL_SEED=$(SEED) $(BIN)/python -m pytest -q tests/stages/test_pipeline_disturbed.py tests/runtime/training/test_resized.py
	$(BIN)/python -m tests.faults.harness --seed $(SEED) --minutes $(MINUTES)

bench: .venv/dev ## benchmarks; results in benchmarks/results/ (hours: see each script's --quick)
	$(BIN)/python -m benchmarks.store_listing
	$(BIN)/python -m benchmarks.planning
	$(BIN)/python -m benchmarks.fan_out
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.overlap
	$(BIN)/python -m benchmarks.encoding
	$(BIN)/python -m benchmarks.generating
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.training_overheads
	$(BIN)/python -m benchmarks.goodput
	$(BIN)/python -m benchmarks.bf16_curve
	$(BIN)/python -m benchmarks.sampling
	$(BIN)/python -m benchmarks.sampling --vae
	$(BIN)/python -m benchmarks.training_data
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.cost_of_quality --model demo/model --images demo/images

gpu-check: .venv/dev ## on a machine with a GPU: parity, repeatability, throughput, MFU, memory; results in benchmarks/results/
	$(BIN)/python -m benchmarks.gpu_check

format: .venv/dev ## format the code and sort imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# constraints.txt pins every version. torch goes in first and alone, so that the build in use (CPU or a CUDA one) is the
# one already chosen when the packages that need torch are resolved.
.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"

.venv/demo: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo]'
	@touch $@

.venv/dev: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch .venv/demo $@

.PHONY: help demo demo-s3 test check pytest quick browser same-bytes faults bench gpu-check format
