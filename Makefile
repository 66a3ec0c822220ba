# Everything happens in .venv, which `make` creates; it needs Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m

.PHONY: demo test test-versions lint types check bench clean

demo: $(VENV)/.ready  ## Three bots, a crowd and a few flooders; no Telegram, token or Redis needed.
	@$(VENV)/bin/python -m example_bot.demo

test: $(VENV)/.ready  ## All tests, on memory, fakeredis, Redis and Valkey.
	$(RUN) pytest

# Environments of their own, one for each combination; VERSIONS="3.12 lowest" runs only those.
test-versions:  ## The suite on every Python from 3.11, with the lowest and the newest versions.
	$(PYTHON) -m tests.versions $(VERSIONS)

lint: $(VENV)/.ready
	$(RUN) ruff check .
	$(RUN) ruff format --check .

types: $(VENV)/.ready
	$(RUN) mypy
	$(VENV)/bin/basedpyright --warnings

check: lint types  ## What a change must pass.
	$(RUN) pytest --cov

# Peers may want other versions of what we depend on, so they have an environment of their own.
bench: $(VENV)-bench/.ready  ## This package and its peers, side by side (about ten minutes).
	$(VENV)-bench/bin/python -m benchmarks --output docs

clean:
	rm -rf $(VENV) $(VENV)-bench $(VENV)-versions dist build .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.ready: GROUPS := --group dev
$(VENV)-bench/.ready: GROUPS := --group dev --group bench

%/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $*
	$*/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --upgrade pip
	$*/bin/pip install --quiet --constraint constraints.txt --editable '.[cli,demo]' $(GROUPS)
	@touch $@
