# `make demo` shows the agent at work, `make test` proves it. Both set up what they need; see tests/lab/install for what that is.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test chaos soak fuzz bench bench-check check format generate golden package requirements examples shots lab-demo lab-test clean

help:
	@echo "make demo [FOR=30s] [OUT=FILE] [ALERTMANAGER=URL]   two small guests, watched"
	@echo "make test [T=tests/unit]         all tests, or some"
	@echo "make chaos [MINUTES=10] [SEED=N] brokers, agents and disks failing, and a judge of what arrived"
	@echo "make soak [MINUTES=60]           VMs that come, go, hang and lie, and whether anything grows"
	@echo "make fuzz [FOR=60] [F=protocol]  inputs made by coverage, for the protocol, the collectors and the config"
	@echo "make bench [PARTS=poll] [SHORT=1]  what it costs, beside a floor and beside peers"
	@echo "make bench-check                 fails where a ratio is worse than it was"
	@echo "make check                       formatting, lint and types"
	@echo "make format                      mend formatting and what lint can mend"
	@echo "make generate                    schemas, dashboards and references made from the code"
	@echo "make golden                      what tests expect of recorded answers, as it is today; read the difference"
	@echo "make package                     a wheel and an sdist in dist/, and what is in them as CycloneDX"
	@echo "make requirements                the container's dependencies anew, pinned by hash"
	@echo "make examples                    the records that docs/records.md shows, out of a real run"
	@echo "make shots                       the README's screenshots, taken of a real run"
	@echo "make clean                       remove the virtual environment and what tools left"

demo: lab-demo
	$(BIN)/qmp-agent demo $(if $(FOR),--duration $(FOR)) $(if $(OUT),--output $(OUT)) $(if $(ALERTMANAGER),--alertmanager $(ALERTMANAGER))

test: lab-test
	$(if $(T),$(BIN)/pytest $(T),BIN=$(BIN) tests/all)

# MINUTES and SEED are its own.
chaos: lab-test
	$(BIN)/python -m tests.chaos --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

soak: lab-test
	$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),60) $(if $(SEED),--seed $(SEED)) --chart soak.svg

# What it finds anew is in .fuzz; tests/fuzz says what to do with it.
fuzz: $(VENV)/dev
	$(BIN)/pip install -q --group fuzz
	for target in $(or $(F),protocol collectors config); do \
		$(BIN)/python -m tests.fuzz $$target --seconds $(or $(FOR),60) || exit 1; \
	done

# What a poll, a scrape, an event, a flood and the memory cost, each beside a floor or a peer in the same run; docs/performance.md.
bench: lab-test
	$(BIN)/python -m tests.bench $(PARTS) $(if $(SHORT),--short) $(if $(JSON),--json $(JSON))

# The ratios that noise moves least, against those that were: a minute.
bench-check: $(VENV)/dev
	$(BIN)/python -m tests.bench --short --against tests/bench/ratios.json poll scrape

check: $(VENV)/dev
	$(BIN)/ruff format --check -q .
	$(BIN)/ruff check -q .
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/mypy

format: $(VENV)/dev
	$(BIN)/ruff format -q .
	$(BIN)/ruff check -q --fix .

generate: $(VENV)/dev
	$(BIN)/qmp-agent schema config > config/agent.schema.json
	$(BIN)/qmp-agent schema record > config/record.schema.json
	$(BIN)/python -m dashboards
	$(BIN)/python -m tools.reference metrics > docs/metrics.md
	$(BIN)/python -m tools.reference records > docs/records.md
	$(BIN)/python -m deploy.prometheus.libvirt_names debian > deploy/prometheus/libvirt-names-debian.yml
	$(BIN)/python -m deploy.prometheus.libvirt_names tinkoff > deploy/prometheus/libvirt-names-tinkoff.yml
	$(BIN)/python -m tools.reference queries > docs/qmp-commands.md

golden: $(VENV)/dev
	GOLDEN=write $(BIN)/pytest -q tests/unit/collectors tests/unit/session/test_transcripts.py tests/unit/exposition tests/unit/config

# docs/records.md shows records of a real run, which is made by hand: when there is a new type of record.
examples: lab-test
	$(BIN)/python -m tests.lab.record_examples

package: $(VENV)/release
	rm -rf dist
	$(BIN)/python -m hatchling build -d dist
	$(BIN)/cyclonedx-py requirements deploy/container/requirements.txt --pyproject pyproject.toml --output-reproducible -o dist/qmp-agent.cdx.json

# For the Python of the container's Debian: 3.11. Neither file names an index, so they are taken from the one that pip is told of.
COMPILE := $(BIN)/pip-compile -q --upgrade --generate-hashes --strip-extras --no-header --no-emit-index-url --no-emit-find-links --no-emit-trusted-host
requirements: $(VENV)/release
	$(COMPILE) -o deploy/container/requirements.txt pyproject.toml
	$(COMPILE) --only-build-deps --build-deps-for wheel -o deploy/container/build-requirements.txt pyproject.toml

# The README's screenshots are taken by hand too, and looked at: when the page or top have changed.
shots: lab-test
	$(BIN)/python -m tests.lab.screenshots

lab-demo: $(VENV)/run
	tests/lab/install demo $(BIN)/python

lab-test: $(VENV)/dev
	tests/lab/install test $(BIN)/python

# The marks $(VENV)/run and $(VENV)/dev say that what pyproject.toml asks for is installed.
$(VENV)/run: pyproject.toml | $(BIN)/pip
	$(BIN)/pip install -q -e .
	@touch $@

$(VENV)/dev: pyproject.toml | $(BIN)/pip
	$(BIN)/pip install -q -e . --group dev
	@touch $@ $(VENV)/run

$(VENV)/release: $(VENV)/dev
	$(BIN)/pip install -q --group release
	@touch $@

# A fresh Debian has Python but not its venv module; its own pip is too old for dependency groups.
$(BIN)/pip:
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || tests/lab/install demo
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade 'pip>=25.1'

clean:
	rm -rf dist $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
