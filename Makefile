# Everything runs in .venv, which each target makes from pyproject.toml and the pins in constraints.txt.
#
#   make demo [OUT=DIR] [SEED=n] [STORE=s3]   the whole chain on embedded images, up to DIR/report.html
#   make check                                lint, types and the tests without Ray, server or process group: while working
#   make test                                 the tests, under 15 minutes on two cores
#   make test-all                             the long ones too, under an hour
#   make lint                                 ruff and mypy
#   make bench                                speed against peers, written to BENCHMARKS.md
#   make bench-accuracy                       Fashion-MNIST whole, three seeds, written to BENCHMARKS.md
#   make clean                                remove what the targets above made

OUT ?= vitpipe-demo
SEED ?= 0
STORE ?= local
PYTHON ?= python3
BIN := .venv/bin
# A worker that crashed is not replaced: the tests would then never end.
PYTEST := $(BIN)/python -m pytest -n 2 --max-worker-restart 0

.PHONY: demo check test test-all lint bench bench-accuracy clean

.venv/made: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,lint]'
	touch $@

demo: .venv/made
	$(BIN)/vitpipe demo --out "$(OUT)" --seed $(SEED) --store $(STORE)

check: lint
	$(PYTEST) -m "not long and not service" tests/unit tests/structure

test: .venv/made
	$(PYTEST) -m "not long"

test-all: .venv/made
	$(PYTEST)

lint: .venv/made
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/made
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/python -m tests.bench

bench-accuracy: .venv/made
	$(BIN)/python -m tests.bench.accuracy

clean:
	rm -rf .venv .venv-peers build dist *.egg-info vitpipe-demo vitpipe-accuracy .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
