# `make help` lists the targets. demo, test, lint and bench set up all they need by themselves, in .venv and,
# for Debian packages, through apt (as root or with a password-less sudo; otherwise they say what is missing).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
export PATH := $(PATH):/usr/sbin:/sbin

VENV := .venv
BIN := $(VENV)/bin
# Most tests wait, for processes to start and for time limits to end: two for each processor keep it busy.
WORKERS ?= $(shell echo $$((2 * $$(nproc))))
TESTS ?= tests
# Programs are started thousands of times in the tests: without byte code each start compiles all of them again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test lint format bench install upgrade uninstall clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo-ready ## burn a certificate, publish, be refused, be revoked: the whole chain in under a minute (KEEP=1 keeps it running)
	@.ci/setup tools mosquitto_sub mosquitto_pub
	@$(BIN)/python examples/demo/demo.py $(if $(KEEP),--keep) $(if $(DIR),--dir '$(DIR)')

test: $(VENV)/.test-ready ## every test, with branch coverage (TESTS=path narrows, WORKERS=n sets the processes)
	@.ci/setup tools mosquitto mosquitto_pub mosquitto_sub nats-server nginx curl socat openssl systemd-analyze gcc /usr/include/openssl/evp.h softhsm2-util pkcs11-tool chromium
	$(BIN)/python -W error -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term:skip-covered $(TESTS)

lint: $(VENV)/.test-ready ## ruff, formatting, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/mypy --strict examples/mtls_client.py examples/demo/demo.py
	$(BIN)/mypy --strict benchmarks

format: $(VENV)/.test-ready ## let ruff put imports and formatting right
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

bench: $(VENV)/.demo-ready ## the gateway beside mosquitto and stock amqtt on this machine, in one run (BENCH='--quick' and more: BENCH=--help)
	@.ci/setup tools mosquitto
	@$(BIN)/python -m benchmarks $(BENCH)

install: ## into /opt/mqtt-gateway with units, users, folders, example configuration (DESTDIR, PREFIX)
	@systemd/setup install

upgrade: ## as install, over an installation: configuration and data stay, running units are restarted
	@systemd/setup upgrade

uninstall: ## remove it; configuration and data stay unless PURGE=1
	@systemd/setup uninstall

clean: ## remove what the targets made here, and nothing else
	rm -rf $(VENV) build dist *.egg-info .coverage .coverage.* .mypy_cache .ruff_cache .hypothesis demo-run

# The stamps make a second run start at once; a changed pyproject.toml installs again.
$(VENV)/.demo-ready: pyproject.toml
	@.ci/setup venv demo
	@touch $@

$(VENV)/.test-ready: pyproject.toml
	@.ci/setup venv test
	@touch $@ $(VENV)/.demo-ready

export DESTDIR PREFIX PURGE PYTHON
