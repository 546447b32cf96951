# Every target makes its own environment where there is none; python3 (3.11 or newer), make and a network are enough.
#
#   make run          3 minutes   a quick check of every framework against the oracle, then train in all of them
#   make check        1 minute    ruff, the core, the import rules, and the eager cases in NumPy and PyTorch
#   make test         6 minutes   lint, types and each thing tested once: what has to pass before a change is accepted
#   make test-all     30 minutes  the same, and what only repeats in another compiler
#   make test-oldest  10 minutes  the eager cases in the oldest versions that the extras admit
#   make lint         1 minute    formatting, lint rules and types
#   make bench        hours       what the losses cost, as ratios against the frameworks' own
#   make docs         1 minute    the site, into site/
#   make clean                    remove everything that was made here, the environment too
#
# The times are those of two cores, once the environment is there.

PYTHON ?= python3
VENV ?= .venv
# Two processes, a file of tests each at a time, in the order of tests/conftest.py: the longest first.
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder

STAMP := $(VENV)/.installed
# Commands run as modules: the interpreter's own path is right even where the scripts beside it point elsewhere.
RUN := $(VENV)/bin/python
CONFORM := $(RUN) -c 'from unifiedloss.cli import main; main()' conform

QUICK_TESTS := $(addprefix tests/test_,$(addsuffix .py,arguments conformance_catches exact_hard imports numpy \
    reference reference_rules registry spec switching switching_explain switching_report))

# The frameworks' start-up chatter would bury our own lines. Nothing that changes a number is set here.
export TF_CPP_MIN_LOG_LEVEL ?= 2
# The same goes for the site's theme, which warns at length of a version of MkDocs that is not installed.
export NO_MKDOCS_2_WARNING ?= 1

.DEFAULT_GOAL := help
.PHONY: help run check test test-all test-oldest suite lint ruff types typing-tree bench docs clean force

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
	@echo 'make run: about 3 minutes on two cores: first every framework against the oracle, then two trainings.'
	$(CONFORM) --quick
	$(RUN) docs/examples/switch_frameworks.py
	$(RUN) docs/examples/same_bits.py
	@echo
	@echo 'make run passed: no framework differs from the oracle, one loss trains the same curves in five frameworks,'
	@echo 'and in exact mode the same bits.'

# The tests that need no compiler: what to run after every edit.
check: ruff
	$(RUN) -m pytest -q -n 2 $(QUICK_TESTS)
	$(CONFORM) --backend numpy --backend torch --mode eager
	$(CONFORM) --backend numpy --backend torch --mode eager --rounding exact

# Type checkers run beside the tests: both start at once, and either fails the whole.
test: ruff
	@+$(MAKE) --no-print-directory -j 2 types suite

test-all: ruff
	@+$(MAKE) --no-print-directory -j 2 types suite PYTEST_ARGS="--strength all $(PYTEST_ARGS)"

test-oldest: $(STAMP)
	$(RUN) -m tests.oldest

suite: $(STAMP)
	$(RUN) -m pytest $(PYTEST_ARGS)

lint: ruff types

ruff: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(STAMP) typing-tree
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
