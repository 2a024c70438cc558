# The commands of DSPortal. `make run` needs Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check --retries 2 --timeout 20
NO_PIP = { echo "DSPortal cannot start: the packages could not be installed (the line above says why). Check the network, then run it again." >&2; exit 1; }

.PHONY: run test bench lint lock messages clean

run: $(VENV)/compiled
	@exec $(BIN)/python -m dsportal.supervisor

test: $(VENV)/installed-dev $(VENV)/compiled
	@tests/install-tools
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --no-loadscope-reorder

bench: $(VENV)/installed-dev
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks

lint: $(VENV)/installed-dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

lock: $(VENV)/installed-dev
	@$(BIN)/pip-compile -q -U --strip-extras --no-header --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-annotate -o requirements.lock requirements.in
	@$(BIN)/pip-compile -q -U --strip-extras --no-header --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-annotate -o requirements-dev.lock requirements-dev.in
	@sed -i 's/+cpu$$//' requirements.lock requirements-dev.lock

messages: $(VENV)/installed-dev
	@$(BIN)/python manage.py makemessages -l zh_Hans --no-location --no-obsolete --ignore .venv --ignore var
	@$(BIN)/python manage.py compilemessages -l zh_Hans --ignore .venv

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "DSPortal needs Python 3.11 or newer; set PYTHON=/path/to/it." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/installed: requirements.lock | $(VENV)/bin/python
	@echo "Installing the packages (once, about a minute) …"
	@$(PIP) -r requirements.lock || $(NO_PIP)
	@touch $@

# The decoders are compiled once for this processor; otherwise the first evaluation would wait for them.
$(VENV)/compiled: $(wildcard workers/engine/*.py) $(wildcard workers/compression/int8*.py) $(VENV)/installed
	@echo "Compiling the decoders (once, about twenty seconds) …"
	@$(BIN)/python -m workers.engine & $(BIN)/python -m workers.compression.ahead && wait $$!
	@touch $@

$(VENV)/installed-dev: requirements-dev.lock $(VENV)/installed
	@echo "Installing what the tests need (once) …"
	@$(PIP) -r requirements-dev.lock || $(NO_PIP)
	@touch $@
