# `make demo` runs a demonstration, `make test` all tests. Both install what they need: see tests/lab/install.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test kubevirt flaky chaos soak fleet fuzz mutants versions bench bench-check check docs format hooks generate golden package prepare-release release requirements examples shots lab-demo lab-test clean

help:
	@echo "make demo [FOR=30s] [OUT=FILE] [ALERTMANAGER=URL]   run two small guests and watch them"
	@echo "make test [T=tests/unit]         run all tests, or those in T"
	@echo "make kubevirt [PODS=10]          run a node like KubeVirt's, with a libvirt in each pod, and the agent on it, until Ctrl-C"
	@echo "make flaky [N=20] [T=PATH] [LOAD=8]   run tests N times under load, and report each test that failed"
	@echo "make chaos [MINUTES=10] [SEED=N] let brokers, agents and disks fail, and check the delivered records"
	@echo "make soak [MINUTES=60]           watch VMs that start, end, hang and send garbage, and check for leaks"
	@echo "make fleet [MINUTES=10]          run five agents under the Flink jobs, and kill one of them"
	@echo "make fuzz [FOR=60] [F=protocol]  fuzz the protocols, the collectors and the config, guided by coverage"
	@echo "make mutants [A='record qmp']    change the code in many small ways, and print each change that no test notices"
	@echo "make versions [PY='3.12 3.13']   run the unit tests with other Pythons and with the oldest dependencies"
	@echo "make bench [PARTS=poll] [SHORT=1] [JSON=FILE]   measure the agent's cost and latency"
	@echo "make bench-check                 fail if a benchmark ratio is worse than its baseline"
	@echo "make check                       check formatting, lint, imports, types, the compatibility of schemas and the documentation's links"
	@echo "make docs                        build the site of the documentation in build/site"
	@echo "make format                      fix formatting, and lint errors that can be fixed automatically"
	@echo "make hooks                       run the commands of make check before each commit, with pre-commit"
	@echo "make generate                    generate schemas, dashboards and references from the code"
	@echo "make golden                      rewrite the golden files of recorded replies; review the difference"
	@echo "make package                     build a wheel and an sdist in dist/, with a CycloneDX list of components"
	@echo "make prepare-release V=1.2.3     write the changelog and the versions in the manifests of a release"
	@echo "make release [BASE=IMAGE]        build all files of a release in dist/, from a clean tree at a tag"
	@echo "make requirements                update the container's dependencies, pinned by hash"
	@echo "make examples                    rewrite the records in docs/reference/records.md from a real run"
	@echo "make shots [OUT=DIR]             rewrite the screenshots in the documentation, or take every view of the page into DIR"
	@echo "make clean                       remove the virtual environment and the tools' caches"

demo: lab-demo
	$(BIN)/qmp-agent demo $(if $(FOR),--duration $(FOR)) $(if $(OUT),--output $(OUT)) $(if $(ALERTMANAGER),--alertmanager $(ALERTMANAGER))

test: lab-test
	$(BIN)/pytest $(or $(T),-n auto --dist loadfile --no-loadscope-reorder)

kubevirt: lab-test
	$(BIN)/python -m tests.kubevirt --pods $(or $(PODS),10) $(if $(FOR),--seconds $(FOR))

flaky: lab-test
	$(BIN)/python -m tests.flaky --runs $(or $(N),20) --load $(or $(LOAD),8) $(T)

chaos: lab-test
	$(BIN)/python -m tests.chaos --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

soak: lab-test
	$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),60) $(if $(SEED),--seed $(SEED)) --chart soak.svg

fleet: lab-test
	$(BIN)/python -m tests.fleet --minutes $(or $(MINUTES),10)

# New inputs are stored in .fuzz. tests/fuzz/__main__.py explains how to use them.
fuzz: $(VENV)/dev
	$(BIN)/pip install -q --group fuzz
	for target in $(or $(F),protocol collectors config guest_protocol guest_collectors rtnetlink); do \
		$(BIN)/python -m tests.fuzz $$target --seconds $(or $(FOR),60) || exit 1; \
	done

# Takes minutes for each area. tests/mutants.py lists the areas, and explains the result.
mutants: $(VENV)/dev
	$(BIN)/pip install -q --group mutants
	$(BIN)/python -m tests.mutants $(A)

# A Python that this machine lacks is skipped. uv builds the environments.
versions: lab-test
	$(BIN)/pip install -q --group versions
	$(BIN)/python -m tests.versions $(PY)

# Measures the cost of a poll, a scrape, an event, a flood and a VM. docs/explanation/performance.md explains the results.
bench: lab-test
	$(BIN)/python -m tests.bench $(PARTS) $(if $(SHORT),--short) $(if $(JSON),--json $(JSON))

# Compares the ratios that vary least with their baselines. Takes a minute.
bench-check: $(VENV)/dev
	$(BIN)/python -m tests.bench --short --against tests/bench/ratios.json poll scrape

check: $(VENV)/dev $(VENV)/docs
	$(BIN)/ruff format --check -q .
	$(BIN)/ruff check -q .
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/mypy
	$(BIN)/python -m tools.schemas check
	$(MKDOCS) build --strict

# The site of the documentation, in build/site. The variable turns off an advertisement.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs
docs: $(VENV)/docs
	$(MKDOCS) build --strict

format: $(VENV)/dev
	$(BIN)/ruff format -q .
	$(BIN)/ruff check -q --fix .

hooks: $(VENV)/dev
	$(BIN)/pip install -q --group hooks
	$(BIN)/pre-commit install

generate: $(VENV)/dev
	$(BIN)/python -m tools.config_schema > agent/config/agent.schema.json
	$(BIN)/qmp-agent schema record > config/record.schema.json
	$(BIN)/python -m tools.schemas write
	$(BIN)/python -m tools.reference metrics > docs/reference/metrics.md
	$(BIN)/python -m dashboards
	$(BIN)/python -m tools.reference records > docs/reference/records.md
	$(BIN)/python -m tools.alerts_reference > docs/reference/alerts.md
	$(BIN)/python -m deploy.prometheus.alert_rules rules > deploy/prometheus/alerts.yml
	$(BIN)/python -m deploy.prometheus.alert_rules forward > deploy/prometheus/agent-alerts.yml
	$(BIN)/python -m deploy.prometheus.libvirt_names debian > deploy/prometheus/libvirt-names-debian.yml
	$(BIN)/python -m deploy.prometheus.libvirt_names tinkoff > deploy/prometheus/libvirt-names-tinkoff.yml
	$(BIN)/python -m deploy.kubernetes.prometheus_rule > deploy/kubernetes/prometheusrule.yaml
	$(BIN)/python -m deploy.prometheus.kubevirt_names > deploy/prometheus/kubevirt-names.yml
	$(BIN)/python -m tools.reference queries > docs/reference/qmp-commands.md
	$(BIN)/python -m tools.user_reference commands > docs/reference/commands.md
	$(BIN)/python -m tools.user_reference config > docs/reference/config.md

golden: $(VENV)/dev
	GOLDEN=write $(BIN)/pytest -q tests/unit/collectors tests/unit/session/test_transcripts.py tests/unit/exposition tests/unit/config

# Run this by hand when there is a new type of record.
examples: lab-test
	$(BIN)/python -m tests.lab.record_examples

package: $(VENV)/release
	rm -rf dist
	$(BIN)/python -m hatchling build -d dist
	$(BIN)/cyclonedx-py requirements deploy/container/requirements.txt --pyproject pyproject.toml --output-reproducible -o dist/qmp-agent.cdx.json
	$(BIN)/python -m tools.components "$$($(BIN)/hatchling version)" dist/qmp-agent.cdx.json dist/qmp-agent.cdx.json

# docs/how-to/release.md has the steps before and after these two.
prepare-release: $(VENV)/release
	@[[ "$(V)" =~ ^[0-9]+\.[0-9]+\.[0-9]+$$ ]] || { echo "usage: make prepare-release V=1.2.3"; exit 1; }
	$(BIN)/towncrier build --yes --version $(V)
	sed -i -E 's/^(version|appVersion): .*/\1: $(V)/' deploy/kubernetes/helm/Chart.yaml
	sed -i -E 's/(image: qmp-agent):[^ ]*/\1:$(V)/' deploy/kubernetes/base/qmp-agent.yaml
	$(BIN)/python -m tools.schemas release

release: $(VENV)/release
	BIN=$(BIN) deploy/release $(BASE)

# Run this with Python 3.11, which the container's Debian has. The files name no package index, so pip uses the configured index.
COMPILE := $(BIN)/pip-compile -q --upgrade --generate-hashes --allow-unsafe --strip-extras --no-header --no-emit-index-url --no-emit-find-links --no-emit-trusted-host
requirements: $(VENV)/release
	$(COMPILE) -o deploy/container/requirements.txt pyproject.toml
	$(COMPILE) --only-build-deps --build-deps-for wheel -o deploy/container/build-requirements.txt pyproject.toml

# Run this by hand after changes of the page or of `qmp-agent top`, and look at the result.
shots: lab-test
	$(BIN)/python -m tests.lab.screenshots $(OUT)

lab-demo: $(VENV)/run
	tests/lab/install demo $(BIN)/python

lab-test: $(VENV)/dev
	tests/lab/install test $(BIN)/python

# The files $(VENV)/run, $(VENV)/dev, $(VENV)/docs and $(VENV)/release mark that their dependencies in pyproject.toml are installed.
$(VENV)/run: pyproject.toml | $(BIN)/pip
	$(BIN)/pip install -q -e .
	@touch $@

$(VENV)/dev: pyproject.toml | $(BIN)/pip
	$(BIN)/pip install -q -e . --group dev
	@touch $@ $(VENV)/run

$(VENV)/docs: $(VENV)/dev
	$(BIN)/pip install -q --group docs
	@touch $@

$(VENV)/release: $(VENV)/run
	$(BIN)/pip install -q --group release
	@touch $@

# A new Debian lacks Python's venv module, and its pip is too old for dependency groups.
$(BIN)/pip:
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || tests/lab/install demo
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade 'pip>=25.1'

clean:
	rm -rf dist $(VENV) .mutants .mypy_cache .ruff_cache .pytest_cache .hypothesis
