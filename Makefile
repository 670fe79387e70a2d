# Each target makes .venv and installs the project into it. PYTHON is the interpreter that .venv is made with.
PYTHON ?= python3
RUN := .venv/bin
ASAN := -g -fsanitize=address,undefined -fno-sanitize-recover=undefined
.PHONY: demo test lint bench mutants asan clean

demo: .venv/run
	$(RUN)/dcp-ref generate "The old man looked at the sea" --model tiny

test: lint
	HYPOTHESIS_PROFILE=ci $(RUN)/python -m pytest

lint: .venv/test,dev
	$(RUN)/ruff check && $(RUN)/mypy

bench: .venv/test,rivals
	$(RUN)/python benchmarks/alpha_sigmoid.py

mutants: .venv/test
	$(RUN)/python tests/mutants.py

asan: .venv/test
	rm -rf build/asan && mkdir -p build/asan
	cp -r dcp_ref csrc tests *.py *.toml README.md LICENSE build/asan && rm -f build/asan/dcp_ref/_native*.so
	cd build/asan && CFLAGS="$(ASAN)" $(CURDIR)/$(RUN)/python setup.py -q build_ext --inplace
	cd build/asan && ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=8 \
	  LD_PRELOAD=$$(gcc -print-file-name=libasan.so) $(CURDIR)/$(RUN)/python -m pytest tests/test_cache.py tests/test_native.py tests/test_slots.py \
	  tests/test_engine.py tests/test_theorem.py

.venv/%: pyproject.toml setup.py build_dcp.py $(wildcard csrc/*)
	test -d .venv || $(PYTHON) -m venv .venv
	$(RUN)/pip install -q --editable ".$(if $(filter-out run,$*),[$*])" && touch $@

clean:
	rm -rf .venv build dist *.egg-info dcp_ref/_native* .*_cache .hypothesis
