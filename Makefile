# make demo   bots trading over recorded trades      make test        the tests, but for the slow
# make check  lint, format, types                    make test-all    every test
# make perf   timed promises, comparison             make perf-quick  about 2 minutes of it
# make soak   faults for hours; SOAK_MINUTES=20 make soak: for so long
#
# Each sets up .venv first. PYTHON=python3.13 make test picks the interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The stamps are named after the interpreter, so another PYTHON makes a new .venv.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)
RUN := $(VENV)/.run-$(VERSION)
DEV := $(VENV)/.dev-$(VERSION)
PEERS := $(VENV)/.peers-$(VERSION)

# Whoever forbids it has each of a thousand processes compile the package, and pytest all tests.
unexport PYTHONDONTWRITEBYTECODE

PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist worksteal

.PHONY: demo test test-slow test-all wheel wheel-test check format perf perf-quick soak clean
.DEFAULT_GOAL := test

demo: $(RUN)
	@$(BIN)/python examples/bots/desk.py

test: $(DEV)
	@$(PYTEST) -m "not slow"

test-slow: $(DEV)
	@$(PYTEST) -m slow --ignore=tests/test_wheel.py

wheel: $(DEV)
	@rm -rf dist
	@$(BIN)/python -m build
	@$(BIN)/twine check --strict dist/*

# WHEEL_TESTS="tests --ignore=tests/test_perf.py" make wheel-test: nearly all, not a few.
wheel-test: $(DEV)
	@$(BIN)/python -m pytest -o faulthandler_timeout=0 tests/test_wheel.py

# One after the other, also under `make -j`: each takes all processors.
test-all: test
	@$(MAKE) --no-print-directory test-slow
	@$(MAKE) --no-print-directory wheel-test

check: $(DEV)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(DEV)
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

PROMISES := perf/results/promises.txt

perf: $(PEERS)
	@status=0; git describe --always --dirty > $(PROMISES); \
	for part in payloads typed keyed observer halt isolation wakeup virtual journal durable explain player replay; do \
		$(BIN)/python -m perf.$$part > $(PROMISES).new || status=1; \
		cat $(PROMISES).new; cat $(PROMISES).new >> $(PROMISES); rm $(PROMISES).new; done; \
	$(BIN)/python -m perf || status=1; exit $$status

perf-quick: $(PEERS)
	@$(BIN)/python -m perf --quick

soak: $(DEV)
	@MACHINE_EXAMPLES=5000 $(BIN)/python -m pytest -q -o timeout=1800 -o faulthandler_timeout=0 \
		--hypothesis-profile=soak -m hypothesis
	@DAMAGE_ROUNDS=200 $(BIN)/python -m pytest -q tests/test_journal_damage.py
	@REPLAY_OUTPUTS=50 REPLAY_DESKS=20 $(BIN)/python -m pytest -q -o timeout=300 \
		tests/test_verify_mutations.py tests/test_verify_desk.py
	@KILL_ROUNDS=13 $(BIN)/python -m pytest -q tests/test_journal_restart.py
	@PYTHONPATH=tests $(BIN)/python -m faults.soak

clean:
	rm -rf $(VENV)

$(RUN): pyproject.toml
	@test -n "$(VERSION)" || { echo "aiobus needs Python 3.11 or newer, and there is no '$(PYTHON)' here; try PYTHON=python3.11 make"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "aiobus needs Python 3.11 or newer, and '$(PYTHON)' is $(VERSION); try PYTHON=python3.11 make"; exit 1; }
	@test -e $@ || { rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[cli]'
	@touch $@

$(DEV): $(RUN)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

$(PEERS): $(DEV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[perf]'
	@touch $@
