# make            install what make chat needs, the examples and the tools into .venv (quick when that has been done)
# make chat       talk to a model; PROMPT="…" answers once; MODEL=… takes another one
# make test       install the other plugins too, large ones, and run all tests, JOBS=2 side by side;
#                 ARGS="-k name" goes to pytest instead, which then runs them one by one
# make lint       check style, types and layers
# make format     mend style
# make bench      compare the speed with other programs', about 12 minutes; ARGS="--quick --force" for a first look
# make soak       200 clients for 10 minutes, and a worker that is killed every 30 s; ARGS="--minutes 1" changes that
# make fuzz-api   send each route 200 requests that fit the OpenAPI document, and 200 that just do not; REQUESTS=1000 sends more
# make clean      delete what was built and cached, but not .venv and .venvs

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TOOLS_STAMP := $(VENV)/.installed-tools
TEST_STAMP := $(VENV)/.installed-tests
BENCH_VENV := .venvs/bench
BENCH_STAMP := $(BENCH_VENV)/.installed
projects = $(patsubst %/,%,$(dir $(wildcard $(1)/*/pyproject.toml)))
EXAMPLES := $(call projects,docs/examples)
# A plugin's pyproject.toml may say, under [tool.myllm], who installs it here: development = "tests", make test (it is
# large); development = "alone", make test into .venvs/NAME (its needs conflict with the others').
saying = $(patsubst %/,%,$(dir $(shell grep -ls '^development = "$(1)"' plugins/*/pyproject.toml)))
LARGE := $(call saying,tests)
ALONE := $(call saying,alone)
LIGHT := . $(filter-out $(LARGE) $(ALONE),$(call projects,plugins))
ALONE_STAMPS := $(ALONE:plugins/%=.venvs/%/.installed)
ALONE_TESTS := $(ALONE:plugins/%=test-%)
MODEL ?= smollm2
REQUESTS ?= 200
JOBS ?= 2
# Prebuilt CPU wheels of llama-cpp-python, by its author; LLAMA_WHEELS= (empty) compiles instead.
LLAMA_WHEELS ?= https://abetlen.github.io/llama-cpp-python/whl/cpu
# The prompt goes to the shell by the environment, so that no character of it means anything;
# only one given to make counts, since some shells export a PROMPT of their own.
ifeq ($(origin PROMPT),command line)
override PROMPT := $(value PROMPT)
else
override PROMPT :=
endif
export PROMPT PYTHON VENV LLAMA_WHEELS BENCH_VENV

.PHONY: all chat test lint format bench soak fuzz-api clean
.PHONY: test-main $(ALONE_TESTS)
.DELETE_ON_ERROR:
.NOTPARALLEL:

space := $(subst x,,x x)

all: $(TOOLS_STAMP)
	@echo "Installed in $(VENV). Next: make chat, or $(BIN)/myllm --help"

SCRIPTS := scripts/install scripts/install_projects.py scripts/constraints.txt
PROJECTS = $(LIGHT)
$(TOOLS_STAMP): PROJECTS += $(EXAMPLES)
$(TEST_STAMP): PROJECTS += $(EXAMPLES) $(LARGE)
$(TOOLS_STAMP) $(TEST_STAMP): export GROUP := dev

$(STAMP): $(SCRIPTS) $(LIGHT:%=%/pyproject.toml)
	@scripts/install $(PROJECTS)
	@touch $@

$(TOOLS_STAMP): $(SCRIPTS) $(patsubst %,%/pyproject.toml,$(LIGHT) $(EXAMPLES))
	@scripts/install $(PROJECTS)
	@touch $(STAMP) $@

$(TEST_STAMP): $(SCRIPTS) $(patsubst %,%/pyproject.toml,$(LIGHT) $(EXAMPLES) $(LARGE))
	@scripts/install $(PROJECTS)
	@touch $(STAMP) $(TOOLS_STAMP) $@

$(ALONE_STAMPS): .venvs/%/.installed: plugins/%/pyproject.toml pyproject.toml $(SCRIPTS)
	@VENV=.venvs/$* GROUP=test scripts/install . plugins/$*
	@touch $@

chat: $(STAMP)
	@if [ -n "$$PROMPT" ]; then $(BIN)/myllm run $(MODEL) --pull -- "$$PROMPT" </dev/null; else $(BIN)/myllm run $(MODEL) --pull; fi

# The environments first: what is in them also makes models for the others' tests.
test: $(if $(ARGS),,$(ALONE_STAMPS)) test-main $(if $(ARGS),,$(ALONE_TESTS))

test-main: $(TEST_STAMP)
	$(BIN)/pytest $(or $(ARGS),-n $(JOBS) --dist loadfile --no-loadscope-reorder)

$(ALONE_TESTS): test-%: .venvs/%/.installed
	.venvs/$*/bin/pytest $(or $(ARGS),plugins/$*)

lint: $(TOOLS_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=$(subst $(space),:,$(wildcard plugins/*)) $(BIN)/lint-imports

format: $(TOOLS_STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(BENCH_STAMP)
	@$(BENCH_VENV)/bin/python benchmarks/compare.py --myllm $(BIN)/myllm $(ARGS)

$(BENCH_STAMP): benchmarks/install_peers benchmarks/requirements.txt benchmarks/llama_server/CMakeLists.txt | $(TOOLS_STAMP)
	@benchmarks/install_peers
	@touch $@

soak: $(TOOLS_STAMP)
	$(BIN)/python benchmarks/soak.py --models-dir .cache/soak $(ARGS)

fuzz-api: $(STAMP)
	API_EXAMPLES=$(REQUESTS) $(BIN)/pytest tests/server/test_schemathesis.py --timeout 0 $(ARGS)

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . \( -path ./$(VENV) -o -path ./.venvs \) -prune -o -type d \( -name __pycache__ -o -name '*.egg-info' \) -print | xargs rm -rf
