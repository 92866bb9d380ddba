# Needs Python 3.11+, pip, git and make. `make demo` and `make test` do everything.
PY   ?= python3
JOBS ?= 3
PIP  := .venv/bin/pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: setup dev demo test lint bench docs clean

.venv/bin/python:
	@$(PY) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "resgen needs Python 3.11 or newer: make PY=python3.11")'
	$(PY) -m venv .venv

# What the library itself needs, and sound.
.venv/.core: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e '.[speech]'
	@touch $@

# What trains, measures and serves: all extras but wandb, moonshine, pretrained, hub, bench, fid and docs.
.venv/.all: .venv/.core
	$(PIP) -e '.[all]'
	@touch $@

# These, and the developers' tools.
.venv/.dev: .venv/.core
	$(PIP) -e '.[all,dev]'
	@touch $@

# What builds the documentation's site.
.venv/.docs: .venv/.core
	$(PIP) -e '.[docs]'
	@touch $@

setup: .venv/.all

dev: .venv/.dev

demo: .venv/.core
	.venv/bin/resgen demo --out out

test: .venv/.dev
	.venv/bin/python -m pytest -q -n $(JOBS) --dist worksteal

lint: .venv/.dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

bench: .venv/.dev
	.venv/bin/python benchmarks/quantizer.py
	.venv/bin/python benchmarks/depth.py
	.venv/bin/python benchmarks/mixture_memory.py
	.venv/bin/python benchmarks/training_step.py
	.venv/bin/python benchmarks/floors.py

docs: .venv/.docs
	.venv/bin/python tools/build_docs.py

clean:
	rm -rf .venv out build
