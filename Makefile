# Everything happens in .venv, which `make` creates; it needs Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
# Two workers a core: tests wait as much as they compute. WORKERS=0 runs them one after the other.
WORKERS ?= auto
RUN := $(VENV)/bin/python -m
PYTEST = $(RUN) pytest -n $(WORKERS) --dist worksteal

# Each test of a program starts a Python: without bytecode it would compile everything again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo dashboard test quick test-versions mutants lint types check docs image release bench clean

# An environment of its own: the bot and the demo, none of the tools for development.
demo: $(VENV)-demo/.ready  ## Three bots, a crowd and a few flooders; no Telegram, token or Redis needed.
	@$(VENV)-demo/bin/python -m example_bot.demo

dashboard: $(VENV)-demo/.ready  ## The same bots and a crowd that never stops, with the page for operators, until Ctrl-C.
	@$(VENV)-demo/bin/python -m example_bot.demo.dashboard

test: $(VENV)/.ready  ## All tests, on memory, fakeredis, Redis and Valkey; T=tests/storage runs a part.
	$(PYTEST) $(T)

quick: $(VENV)/.ready  ## The tests that start no server, browser or other process.
	$(PYTEST) -rfE --quick $(T)

# Environments of their own, one for each combination; VERSIONS="3.12 lowest" runs only those.
test-versions:  ## The suite on every Python from 3.11, with the lowest and the newest versions.
	$(PYTHON) -m tests.versions $(VERSIONS)

# Some seconds each, when the quick tests have run once: COUNT=10 SEED=4 makes ten of them again; FOLDERS="limiter".
mutants: $(VENV)/.ready  ## Puts small mistakes into limiter, storage and incoming, and counts those that the tests find.
	$(RUN) tests.mutants $(FOLDERS) $(if $(COUNT),--count $(COUNT)) $(if $(SEED),--seed $(SEED))

lint: $(VENV)/.ready
	$(RUN) ruff check .
	$(RUN) ruff format --check .

types: $(VENV)/.ready
	$(RUN) mypy
	$(VENV)/bin/basedpyright --warnings

check: lint types  ## What a change must pass.
	$(PYTEST) --cov

# Of Sphinx, whatever it warns of is an error; then every link of the result is followed.
docs: $(VENV)-docs/.ready  ## The documentation as a site: build/docs/index.html.
	@rm -rf build/docs
	$(VENV)-docs/bin/python -m sphinx -EW --keep-going -q -c docs/site -d build/docs-cache . build/docs
	$(VENV)-docs/bin/python docs/site/links.py build/docs

image: $(VENV)/.ready  ## A project with a copy of deploy/: the steps of its Dockerfile without Docker, and its health.
	$(RUN) tests.image

# Without VERSION a dry run: everything but the commit and the tag. DRY_RUN=1 is one with a version.
release: $(VENV)-release/.ready  ## make release VERSION=1.2.3: changelog, build, checks, a trial, commit and tag.
	$(VENV)-release/bin/python .ci/release.py $(VERSION) $(if $(DRY_RUN),--dry-run)

# Peers may want other versions of what we depend on, so they have an environment of their own.
bench: $(VENV)-bench/.ready  ## This package and its peers, side by side (about ten minutes).
	$(VENV)-bench/bin/python -m benchmarks --output docs/project

clean:
	rm -rf $(VENV) $(VENV)-bench $(VENV)-demo $(VENV)-docs $(VENV)-release $(VENV)-system $(VENV)-versions dist build .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.ready: INSTALL := --editable '.[admin,cli,demo]' --group dev
$(VENV)/.ready: FOR := the package, the demo, and what its development needs (about a minute)
$(VENV)-bench/.ready: INSTALL := --editable '.[demo]' --group dev --group bench
$(VENV)-bench/.ready: FOR := the package, its peers, and what draws the plots
$(VENV)-demo/.ready: INSTALL := --editable '.[admin,demo]'
$(VENV)-demo/.ready: FOR := aiogram, redis-py, an embedded Redis, the page and the demo (about 20 seconds, only this time)
$(VENV)-docs/.ready: INSTALL := --editable '.[admin,cli,metrics]' --group docs
$(VENV)-docs/.ready: FOR := the package, and what makes the documentation
$(VENV)-release/.ready: INSTALL := --group release
$(VENV)-release/.ready: FOR := what builds and checks a release

%/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@echo "Installing into $*: $(FOR) ..."
	@$(PYTHON) -m venv $*
	@$*/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --upgrade pip
	@$*/bin/pip install --quiet --constraint constraints.txt $(INSTALL)
	@touch $@
