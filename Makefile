# Each target makes .venv and installs the project into it; PYTHON chooses the interpreter it starts from.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
STAMP := $(VENV)/.installed-
SOURCES := pyproject.toml setup.py build_dcp.py $(wildcard csrc/*)
SANITIZE := -g -fsanitize=address,undefined -fno-sanitize-recover=undefined

.PHONY: demo test lint bench mutants asan clean

demo: $(STAMP)run
	$(RUN)/dcp-ref generate "The old man looked at the sea" --model tiny

test: lint
	HYPOTHESIS_PROFILE=ci $(RUN)/python -m pytest

lint: $(STAMP)test,dev
	$(RUN)/ruff check
	$(RUN)/mypy

bench: $(STAMP)test,rivals
	$(RUN)/python benchmarks/alpha_sigmoid.py

mutants: $(STAMP)test,dev
	$(RUN)/python tests/mutants.py

asan: $(STAMP)test,dev
	CFLAGS="$(SANITIZE)" $(RUN)/python tests/sanitized.py

$(STAMP)%: $(SOURCES)
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(RUN)/pip install -q --editable ".$(if $(filter-out run,$*),[$*])"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info dcp_ref/_native* .*_cache .hypothesis
