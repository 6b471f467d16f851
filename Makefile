# What one types in a checkout. Needs GNU make >= 3.81, a POSIX shell and Python >=3.11,<3.14; uses uv where it is there.

VENV = .venv
BIN = $(VENV)/bin
PYTHON ?=
# Which build of torch the environment has; another one makes it anew.
KEPT := $(or $(shell cat $(VENV)/.torch 2>/dev/null),lock)
TORCH = $(KEPT)
ARGS =

.PHONY: another help setup demo test quick faults lint docs bench lock clean

help:
	@echo 'make demo    set up, then distil on the digits that come with scikit-learn and print the table'
	@echo 'make setup   make $(VENV) with the locked packages; PYTHON=/path/to/python3 chooses the interpreter,'
	@echo '             TORCH=cpu a torch without CUDA, TORCH=auto the one for this driver (needs uv; docs/install.md)'
	@echo 'make test    all tests; ARGS="-k name" goes to pytest'
	@echo 'make quick   the tests that take no more than a few seconds each'
	@echo 'make faults  kill, damage and starve real runs for up to an hour; ARGS="kills --only 17" tries one case'
	@echo 'make lint    ruff and mypy'
	@echo 'make docs    the documentation as a site, docs/_build/index.html; a dead link is an error'
	@echo 'make bench   measure speed for up to two hours, into outputs/published/bench; ARGS="views rounds=3" measures some of it'
	@echo 'make lock    remake requirements.lock (needs uv); ARGS=--upgrade takes the newest versions'
	@echo 'make clean   remove $(VENV), caches and build files; outputs/ stays'

# Says so where nothing is to be done, if it was asked for alone.
setup: $(VENV)/.stamp
	@$(if $(MADE)$(filter-out setup,$(MAKECMDGOALS)),:,echo '$(VENV) is up to date: nothing to do; make clean starts anew')

# Interrupted or failed: no stamp, and the next call goes on where this one stopped.
$(VENV)/.stamp: requirements.lock pyproject.toml $(if $(filter $(TORCH),$(KEPT)),,another)
	@$(eval MADE = yes)rm -f $@; VENV='$(VENV)' PYTHON='$(PYTHON)' TORCH='$(TORCH)' sh scripts/setup.sh && touch $@

demo: setup
	$(BIN)/python -m kdrun sweep experiment=demo loss=ce,kd,ttm,wttm seed=0,1,2 engine.slots=2 engine.threads=1
	$(BIN)/python scripts/table.py table=demo

# worksteal: neighbours stay on one worker, and what a file's fixtures trained is trained once.
test: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal -q $(ARGS)

quick: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal -q -m "not slow" $(ARGS)

faults: setup
	$(BIN)/python -m tests.faults $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	$(BIN)/python -m sphinx -q -W --keep-going -E docs docs/_build
	@echo 'docs/_build/index.html'

bench: setup
	$(BIN)/python -m scripts.bench $(if $(ARGS),$(ARGS),write=outputs/published/bench)

# Keeps the versions in the file wherever pyproject.toml allows them.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --extra dev --output-file requirements.lock $(ARGS) pyproject.toml

clean:
	rm -rf $(VENV) build dist docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
