# Every target creates its environment if there is none. It needs only python3 (3.11 or newer), make
# and a network.
#
#   make run          3 minutes   check every framework against the oracle, then train in all
#   make check        1 minute    ruff, quick tests, and the eager cases in NumPy and PyTorch
#   make test         15 minutes  lint, types and tests; every change has to pass this
#   make test-all     45 minutes  the same, and the slow tests that repeat in another compiler
#   make test-oldest  3 minutes   the eager cases in the oldest versions that the extras admit
#   make test-sanitize  5 minutes  the compiled loops under ASan and UBSan, with random calls
#   make test-aarch64  8 minutes  the compiled loops on an emulated aarch64 processor
#   make lint         1 minute    formatting, lint rules and types
#   make bench        hours       times of the losses, relative to the frameworks' own
#   make docs         1 minute    build the site into site/
#   make stubs                    write unifiedloss/functional.pyi from the fields of the specs
#   make tables       20 minutes  write what is generated in the pages of docs/, from a whole run
#   make wheel        3 minutes   build the wheel with the compiled loops and the pure one, try both
#   make scoreboard   5 minutes   run the libraries' own losses on the suite, for docs/scoreboard.md
#   make quirks       1 minute    record what the installed libraries' losses do unlike their specs
#   make clean                    remove all generated files, and the environment
#
# The times are for two cores and an existing environment.

PYTHON ?= python3
VENV ?= .venv
# Two processes, one test file at a time in each, in the order of tests/conftest.py: longest first.
# The slowest tests are listed, because a run has to stay within ten minutes.
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder --durations 60 --durations-min 2

STAMP := $(VENV)/.installed
TRAINERS := $(VENV)/.trainers
# Run commands as modules, because the scripts in an environment's bin/ hold an absolute path to
# Python, which is wrong in a copied environment.
RUN := $(VENV)/bin/python
CONFORM := $(RUN) -m unifiedloss conform

QUICK_TESTS := $(addprefix tests/test_,$(addsuffix .py,arguments conformance_catches exact_hard \
    imports numpy reference reference_rules registry spec interop interop_explain \
    interop_report))

# Hide the frameworks' start-up messages. No variable here changes a result.
export TF_CPP_MIN_LOG_LEVEL ?= 2
# A test run starts about 70 processes. Without bytecode files each of them compiles the package.
unexport PYTHONDONTWRITEBYTECODE
# Hide a long warning of the site's theme about a MkDocs version that is not installed.
export NO_MKDOCS_2_WARNING ?= 1

.DEFAULT_GOAL := help
.PHONY: help run check test test-all test-oldest test-sanitize suite lint ruff c-format
.PHONY: types typing-tree bench docs stubs tables scoreboard wheel quirks browser clean
.PHONY: test-aarch64 cross
.PHONY: force

help:
	@sed -n 's/^#   //p' Makefile

# An editable install points at the folder in which it was made. In a copied or moved repository it
# would silently test the other folder's code. So the stamp holds the path, and a change of the path
# installs again.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
$(STAMP): force
endif
$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard unifiedloss/compiled/*.[ch])
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --no-input --disable-pip-version-check \
	    -c constraints.txt -e '.[all,dev]'
	@echo '$(CURDIR)' > $@

# Packages of several hundred megabytes that only slow tests need.
$(TRAINERS): $(STAMP)
	$(RUN) -m pip install --quiet --no-input --disable-pip-version-check \
	    -c constraints.txt -e '.[trainers]'
	@touch $@

run: $(STAMP)
	@echo 'make run: about 3 minutes on two cores: first every framework against the oracle,'
	@echo 'then two trainings.'
	$(CONFORM) --quick
	$(RUN) docs/examples/switch_frameworks.py
	$(RUN) docs/examples/same_bits.py
	@echo
	@echo 'make run passed: no framework differs from the oracle, one loss trains the same curves in'
	@echo 'five frameworks, and in exact mode the same bits, also where a batch is cut into pieces.'

# The tests that need no compiler. Run them after every edit.
check: ruff
	$(RUN) -m pytest -q -n 2 $(QUICK_TESTS)
	$(CONFORM) --backend numpy --backend torch --mode eager
	$(CONFORM) --backend numpy --backend torch --mode eager --rounding exact

# Type checkers and tests run in parallel, and either can fail the target.
test: ruff c-format browser
	@+$(MAKE) --no-print-directory -j 2 types suite

test-all: ruff c-format browser $(TRAINERS)
	@+$(MAKE) --no-print-directory -j 2 types suite PYTEST_ARGS="--strength all $(PYTEST_ARGS)"
	@+$(MAKE) --no-print-directory test-aarch64

# The browser in which tests/test_reports.py looks at reports. Without it these tests are skipped, or
# fail with UNIFIEDLOSS_REQUIRE_ALL=1; tests/browser.py has the same names.
browser:
	@for name in chromium chromium-browser google-chrome google-chrome-stable chrome; do \
	    if command -v $$name >/dev/null; then exit 0; fi; \
	done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo 'Installing chromium, which takes about a minute.'; \
	    apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y \
	        --no-install-recommends chromium fonts-dejavu-core >/dev/null && exit 0; \
	fi; \
	echo 'There is no Chromium here, so the tests of reports in a browser cannot run.' >&2; \
	echo 'Install it with: sudo apt-get install chromium (or the package of your system).' >&2

test-oldest: $(STAMP)
	$(RUN) -m tests.oldest

# It builds the loops once more, in build/sanitize/.
test-sanitize: $(STAMP)
	$(RUN) -m tests.sanitize

# A cross compiler builds the loops for aarch64, and qemu runs them; see tests/aarch64.py.
test-aarch64: $(STAMP) cross
	$(RUN) -m tests.aarch64

cross:
	@if ! command -v qemu-aarch64 >/dev/null && [ "$$(id -u)" = 0 ] && \
	    command -v apt-get >/dev/null; then \
	    echo 'Installing a compiler for aarch64 and qemu, which takes about a minute.'; \
	    apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y \
	        --no-install-recommends gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user >/dev/null; \
	fi

suite: $(STAMP)
	$(RUN) -m pytest $(PYTEST_ARGS)

lint: ruff c-format types

ruff: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

c-format: $(STAMP)
	$(RUN) -c 'from clang_format import clang_format; clang_format()' --dry-run --Werror \
	    $(wildcard unifiedloss/compiled/*.[ch])

types: $(STAMP) typing-tree
	$(RUN) -m mypy --python-executable $(RUN)
	$(RUN) -m pyright --pythonpath $(RUN)

# Type checkers do not know that adapters/ is unifiedloss.adapters. This tree shows them the package
# as it is installed.
typing-tree:
	@rm -rf build/typing && mkdir -p build/typing/unifiedloss
	@cd build/typing/unifiedloss && ln -s ../../../unifiedloss/* ../../../adapters .

bench: $(STAMP)
	$(RUN) -m tests.benchmarks.ratios

docs: $(STAMP)
	$(RUN) -m mkdocs build --strict

stubs: $(STAMP)
	$(RUN) -m tools.stubs

tables: $(STAMP)
	$(RUN) -m tools.tables

wheel: $(STAMP)
	$(RUN) -m tools.wheels

scoreboard: $(STAMP)
	$(RUN) -m tools.scoreboard

quirks: $(STAMP)
	$(RUN) -m tools.quirks

clean:
	rm -rf $(VENV) build dist site *.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
