# `make` alone lists the targets. PYTHON=python3.12 picks another interpreter for .venv.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
LOG := $(VENV)/install.log
# Tests that use one core go side by side; those that start clusters or kill processes have the machine to themselves.
SIDE_BY_SIDE := tests/unit tests/fuzz
ONE_BY_ONE := tests/integration tests/chaos
TEST_PROCESSES ?= 2
BENCHMARKS := $(filter-out benchmarks/_%.py benchmarks/chaos.py benchmarks/study.py,$(wildcard benchmarks/*.py))

# Everything pip says goes to the log; the terminal sees the large downloads and, if it fails, why.
define pip_install
$(PY) -m pip install --disable-pip-version-check --no-input --progress-bar off --constraint constraints.txt $(1) \
	2>&1 | tee -a $(LOG) | sed -un 's/^ *Downloading \([^ -]*\)-.* (\([0-9.]* GB\|[0-9]\{3,\}[0-9.]* MB\))$$/  downloading \1, \2/p; s/^Installing collected packages: .*,.*/  unpacking .../p' \
	|| { echo "The installation failed. pip's last words (all of them are in $(LOG)):" >&2; tail -n 20 $(LOG) >&2; exit 1; }
endef

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: $(VENV)/.installed ## Create .venv with everything that swamp needs
	@echo "Ready: $(VENV)/bin/swamp --help"

.PHONY: demo
demo: $(VENV)/.installed ## Set up, then prune a small network with SWAMP (configs/quickstart.yaml)
	@$(PY) -m swamp_ray run configs/quickstart.yaml

.PHONY: test
test: lint ## Set up, then ruff, pyright and the tests
	@$(PY) -m pytest $(SIDE_BY_SIDE) --numprocesses $(TEST_PROCESSES) --dist loadfile
	@$(PY) -m pytest $(ONE_BY_ONE)

.PHONY: test-nightly
test-nightly: $(VENV)/.installed-dev ## Hostile files, browsers, cluster schemas, and the tests that take minutes
	@$(PY) -m pytest -m "(nightly or slow) and not gpu and not extras"

.PHONY: test-slow
test-slow: $(VENV)/.installed-dev ## The tests that take minutes
	@$(PY) -m pytest -m "slow and not gpu"

.PHONY: test-gpu
test-gpu: $(VENV)/.installed-dev ## The tests that need a CUDA device
	@$(PY) -m pytest -m gpu

.PHONY: test-extras
test-extras: $(VENV)/.installed-extras ## The tests of Optuna, HyperOpt, MLflow and W&B
	@$(PY) -m pytest -m extras

.PHONY: chaos
chaos: $(VENV)/.installed-dev ## Disturb a run with 200 faults; about half an hour
	@$(PY) benchmarks/chaos.py

.PHONY: study-cpu
study-cpu: $(VENV)/.installed ## The next hour of the study on processors (docs/study.md)
	@$(PY) benchmarks/study.py cpu --budget-min 60 --jobs 2

.PHONY: study
study: $(VENV)/.installed ## The next nine minutes of the study on a GPU (docs/study.md)
	@$(PY) benchmarks/study.py gpu --budget-min 8

.PHONY: lint
lint: $(VENV)/.installed-dev ## ruff and pyright
	@$(PY) -m ruff check
	@$(PY) -m pyright --pythonpath $(PY)

.PHONY: bench
bench: $(VENV)/.installed-dev ## Run benchmarks/*.py one after the other
	@for script in $(BENCHMARKS); do echo "== $$script"; $(PY) $$script; done

.PHONY: clean
clean: ## Remove .venv and caches; results of runs stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are as old as the last installation, so that a second call takes no time.
$(VENV)/.installed: requirements.txt constraints.txt pyproject.toml | $(VENV)/.created
	@if [ -e $@ ]; then echo "The requirements have changed: bringing $(VENV) up to date."; else \
		echo "Installing swamp_ray and what it needs into $(VENV): PyTorch with CUDA, Ray, about 6 GB on disk."; \
		echo "This happens once and takes a few minutes; details are in $(LOG)."; fi
	@: > $(LOG)
	@$(call pip_install,"setuptools>=77" -r requirements.txt)
	@$(call pip_install,--no-deps --no-build-isolation --editable .)
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt cluster/requirements.txt $(VENV)/.installed
	@echo "Installing the tools for tests and checks."
	@$(call pip_install,-r requirements-dev.txt)
	@touch $@

$(VENV)/.installed-extras: pyproject.toml constraints.txt $(VENV)/.installed-dev
	@echo "Installing the optional packages for sweeps."
	@$(call pip_install,--no-build-isolation --editable ".[sweeps]")
	@touch $@

$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { echo "'$(PYTHON)' was not found: install Python >= 3.11, or name one with PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python >= 3.11 is needed, but '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
		|| { echo "'$(PYTHON)' cannot create virtual environments: Debian and Ubuntu keep that in a package of its own. Run" >&2; \
			echo "    sudo apt-get install $$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')" >&2; \
			echo "and then the same make command again." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@
