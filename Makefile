# Every target makes its own environment where there is none; python3 (3.11 or newer), make and a network are enough.
#
#   make run      check every installed framework against the oracle, then train in all of them with one loss
#   make test     lint, then every test
#   make lint     formatting, lint rules and types
#   make bench    what the losses cost, as ratios against the frameworks' own
#   make docs     the site, into site/
#   make clean    remove everything that was made here, the environment too

PYTHON ?= python3
VENV ?= .venv
# Two processes, a file of tests each at a time, in the order of tests/conftest.py: the longest first.
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder

STAMP := $(VENV)/.installed
# Commands run as modules: the interpreter's own path is right even where the scripts beside it point elsewhere.
RUN := $(VENV)/bin/python

# The frameworks' start-up chatter would bury our own lines. Nothing that changes a number is set here.
export TF_CPP_MIN_LOG_LEVEL ?= 2
# The same goes for the site's theme, which warns at length of a version of MkDocs that is not installed.
export NO_MKDOCS_2_WARNING ?= 1

.DEFAULT_GOAL := help
.PHONY: help run test lint typing-tree bench docs clean force

help:
	@sed -n 's/^#   //p' Makefile

# An editable install points at the folder it was made in. One that came along with a copied or moved repository would
# silently test the other folder's code, so the stamp holds the path and a different one installs again.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
$(STAMP): force
endif
$(STAMP): pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --no-input --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@echo '$(CURDIR)' > $@

run: $(STAMP)
	$(VENV)/bin/unifiedloss conform
	$(RUN) docs/examples/switch_frameworks.py
	$(RUN) docs/examples/same_bits.py

test: lint
	$(RUN) -m pytest $(PYTEST_ARGS)

lint: $(STAMP) typing-tree
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy --python-executable $(RUN)
	$(RUN) -m pyright --pythonpath $(RUN)

# Type checkers do not know that adapters/ is unifiedloss.adapters: here they see the package as it is installed.
typing-tree:
	@rm -rf build/typing && mkdir -p build/typing/unifiedloss
	@cd build/typing/unifiedloss && ln -s ../../../unifiedloss/* ../../../adapters .

bench: $(STAMP)
	$(RUN) -m tests.benchmarks.ratios

docs: $(STAMP)
	$(RUN) -m mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
