# Each target makes what it needs first: `make test` works in a bare clone, with python3, a C++
# compiler and a package registry. The environment is .venv, with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
INSTALL := $(RUN)/python -m pip install -qq --no-compile -c constraints.txt
NATIVE_SOURCES = $(wildcard csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh \
                   python/*.cpp python/*.h tests/native/*.cpp tests/native/*.h)

export PATH := $(abspath $(RUN)):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Not compiled when installed: Python compiles the few modules that it imports, the first time.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := build
.PHONY: venv build test thorough kill-test kill-test-ranks lint format docs demo wheels sanitize \
        fuzz portability bench peers evidence-quick evidence evidence-texts evidence-images \
        evidence-gpu audit gpu-check gpu-rehearsal clean

# The environment grows with what is asked of it, and is made anew when either description changes.
# The demo's has no build tools: pip compiles the modules with tools that it removes. Any other
# begins with the tools, then has one extra of pyproject.toml after the other, with the package
# itself, editable. The demo compiles _cuda only where there is a GPU.
$(VENV)/made: constraints.txt pyproject.toml
	@echo "Making $(VENV): torch, what '$(or $(MAKECMDGOALS),build)' needs beside it, and the C++" \
	    "modules. About a minute on two cores, and what the downloads take."
	$(PYTHON) -m venv --clear $(VENV)
	touch $@
$(VENV)/demo: $(VENV)/made
	EMP_CUDA=$${EMP_CUDA-$(if $(wildcard /dev/nvidia*),1,0)} PIP_CONSTRAINT=$(abspath constraints.txt) \
	    $(INSTALL) --editable '.[demo]'
	touch $@
$(VENV)/tools: $(VENV)/made
	$(INSTALL) setuptools cmake ninja pybind11
	touch $@
$(VENV)/base: $(VENV)/tools
	$(INSTALL) --no-build-isolation --editable '.[demo]'
	touch $@
$(VENV)/test $(VENV)/dev $(VENV)/docs $(VENV)/wheels:
	$(INSTALL) --no-build-isolation --editable '.[$(@F)]'
	touch $@
$(VENV)/test: $(VENV)/base
$(VENV)/dev $(VENV)/docs $(VENV)/wheels: $(VENV)/test

venv: $(VENV)/dev

# The native modules, in the tree; compiles only what changed.
build: $(VENV)/base
	$(RUN)/python setup.py -q build_ext --inplace

# Two processes of one thread each: the tests that are about threads set their own number.
test: $(VENV)/test build
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n 2 --dist worksteal

# What `make test` leaves out for its time: losses with options and torch's switches in Triton's
# interpreter, and the machine code of every variant of the kernels.
thorough: $(VENV)/test build
	EMP_THOROUGH=1 OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n 2 \
	    tests/test_triton_interpreter.py tests/test_audit.py

# Trainings killed 200 times, at random moments: each must go on as if nothing had been. A share of
# it is in `make test`; KILLS sets the count.
kill-test: $(VENV)/test build
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(RUN)/python -m kills --kills $(or $(KILLS),200)

# The same on ranks under torchrun, which go on on 4, 3 and 2 of them.
kill-test-ranks: $(VENV)/test build
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(RUN)/python -m kills.elastic --kills $(or $(KILLS),50)

lint: $(VENV)/dev
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/clang-format --dry-run -Werror $(NATIVE_SOURCES)

format: $(VENV)/dev
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .
	$(RUN)/clang-format -i $(NATIVE_SOURCES)

# The pages of docs/ into build/html; a warning is an error.
docs: $(VENV)/docs build
	$(RUN)/python -m sphinx -W --keep-going -q docs build/html

# Builds with the tools where they are, or where the sources are newer than the demo's environment.
BUILDS := $(wildcard $(VENV)/tools)$(shell find CMakeLists.txt csrc python -newer $(VENV)/demo 2>&-)
demo: $(if $(BUILDS),build,$(VENV)/demo)
	@echo "Trains 36 small networks with three ways of choosing samples, in about a minute."
	$(RUN)/python -m emp_kernels demo

# dist/: the source archive, and from it a wheel for each of PYTHONS, all built in environments of
# their own and tried in bare ones.
PYTHONS ?= $(PYTHON)
wheels: $(VENV)/wheels build
	rm -rf dist
	PIP_CONSTRAINT=constraints.txt $(RUN)/python -m build --quiet --sdist
	for python in $(PYTHONS); do PIP_CONSTRAINT=$(abspath constraints.txt) $$python -m pip wheel -qq \
	    --no-deps --wheel-dir dist/linux dist/*.tar.gz || exit 1; done
	$(RUN)/auditwheel repair --wheel-dir dist dist/linux/*.whl
	rm -r dist/linux
	$(RUN)/twine check --strict dist/*
	EMP_WHEELS=dist EMP_PYTHONS="$(PYTHONS)" $(RUN)/python -m pytest tests/test_wheels.py

# The native tests under AddressSanitizer with UndefinedBehaviorSanitizer, and ThreadSanitizer, at
# every SIMD level of this processor (a level it lacks runs the next lower one).
comma := ,
sanitize: $(addprefix sanitize-,address$(comma)undefined thread)
sanitize-%: $(VENV)/tools
	cmake -G Ninja -S . -B build/sanitize-$* -DEMP_NATIVE_TESTS=ON -DEMP_SANITIZE=$* \
	    -DCMAKE_BUILD_TYPE=RelWithDebInfo --log-level=NOTICE
	cmake --build build/sanitize-$*
	for level in avx512 avx2 portable; do \
	    EMP_SIMD=$$level $(RUN)/ctest --test-dir build/sanitize-$* --output-on-failure || exit 1; done

# Random cases at every SIMD level for SECONDS: the public functions against oracles, and the engine
# under both sanitizers. A failure is printed with the command that makes it again.
SECONDS ?= 60
FUZZED := floats|gathering|labels|pruning|row_sums|scoring|selection|state|targets|threads|tokens
FUZZERS := address$(comma)undefined thread
fuzz: $(VENV)/test build $(addprefix fuzzer-,$(FUZZERS))
	$(RUN)/python -m tests.fuzz --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) \
	    $(patsubst %,--native build/fuzz-%/fuzz,$(FUZZERS))
# Compiled quickly: what no other check finds takes half of the time.
fuzzer-%: $(VENV)/tools
	cmake -G Ninja -S . -B build/fuzz-$* -DEMP_NATIVE_TESTS=ON -DEMP_SANITIZE=$* \
	    '-DEMP_UNITS=$(FUZZED)' -DCMAKE_BUILD_TYPE=Debug --log-level=NOTICE \
	    '-DCMAKE_CXX_FLAGS=-O1 -fno-var-tracking -fno-sanitize=null,object-size -D_GLIBCXX_ASSERTIONS'
	cmake --build build/fuzz-$* --target fuzz

# The native tests as gcc and clang build them, none of which may warn; both are to be there. Then
# those of AArch64, by a cross compiler and an emulator: without these it says so and goes on.
portability: $(addprefix portability-,g++ clang++ aarch64)
PORTABILITY = cmake -G Ninja -S . -B build/$@ -DEMP_NATIVE_TESTS=ON \
    -DCMAKE_COMPILE_WARNING_AS_ERROR=ON --log-level=NOTICE
portability-g++ portability-clang++: portability-%: $(VENV)/tools
	$(PORTABILITY) -DCMAKE_CXX_COMPILER=$*
	cmake --build build/$@
	for level in avx512 avx2 portable; do \
	    EMP_SIMD=$$level $(RUN)/ctest --test-dir build/$@ --output-on-failure || exit 1; done
portability-aarch64: $(VENV)/tools
	@if command -v aarch64-linux-gnu-g++ && command -v qemu-aarch64; then set -ex; \
	    $(PORTABILITY) -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	        -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
	        "-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64;-L;/usr/aarch64-linux-gnu"; \
	    cmake --build build/$@; \
	    $(RUN)/ctest --test-dir build/$@ --output-on-failure --parallel 2; \
	else echo "AArch64 is not tested: that needs aarch64-linux-gnu-g++ and qemu-aarch64, which" \
	    "Debian has in the packages g++-aarch64-linux-gnu and qemu-user."; fi

# Rows, tables and plots into bench/results/<date>-<machine>, and the pages' tables and the
# README's picture from them.
bench: $(VENV)/test build
	results=$$($(RUN)/python -m bench.harness) && \
	$(RUN)/python -m pytest bench --rows $$results && \
	$(RUN)/python -m bench.draw $$results && \
	$(RUN)/python -m bench.readme_tables $$results && \
	$(RUN)/python -m bench.overview

# Other packages into .venv, for `make bench` to time beside ours; without them it says that they
# are not measured. Nothing else needs them.
peers: $(VENV)/test
	$(RUN)/python -m pip install --no-deps -r bench/peers.txt

# Pruning methods compared, on digits and mnist1d: RESULTS (by default today's folder) is filled up,
# so both can be stopped and started again. The quick one runs keep 0.3 with three seeds; the other
# one all, mnist1d under other regimes, and CIFAR-100 where it is: make evidence CIFAR100=FOLDER.
METHODS = results=$(or $(RESULTS),$$($(RUN)/python -m bench.harness)) && \
	$(RUN)/python -m bench.methods --rows $$results
evidence-quick: $(VENV)/test build
	$(METHODS) --quick && \
	$(RUN)/python -m bench.methods.draw $$results

evidence: $(VENV)/test build
	$(METHODS) && \
	$(if $(CIFAR100),$(RUN)/python -m bench.methods --rows $$results \
	    --data cifar100 --data-dir $(CIFAR100) &&) \
	$(RUN)/python -m bench.methods.draw $$results && \
	$(RUN)/python -m bench.readme_tables $$results

# Ways of choosing on real texts, against full data in as many steps, and the time that it saves: an
# hour and a half on one core, in as many pieces as you like. The first command needs a network, once.
evidence-texts: $(VENV)/test build
	results=$(or $(RESULTS),$$($(RUN)/python -m bench.harness)) && \
	$(RUN)/python -m bench.methods.fair.fetch && \
	$(RUN)/python -m bench.methods.fair --rows $$results --data wordnet debian debian-wide && \
	$(RUN)/python -m bench.methods.fair.saving --rows $$results && \
	$(RUN)/python -m bench.methods.fair.draw $$results && \
	$(RUN)/python -m bench.readme_tables $$results

# The same on digits, and on CIFAR-100 where it is: make evidence-images CIFAR100=FOLDER.
evidence-images: $(VENV)/test build
	results=$(or $(RESULTS),$$($(RUN)/python -m bench.harness)) && \
	$(RUN)/python -m bench.methods.fair --rows $$results --data digits \
	    $(if $(CIFAR100),cifar100 --data-dir $(CIFAR100)) && \
	$(RUN)/python -m bench.methods.fair.draw $$results && \
	$(RUN)/python -m bench.readme_tables $$results

# The same on a GPU, with larger networks and longer trainings: offline, with the PYTHON that has
# torch, in pieces of nine minutes. Call it again until it says that every run is there.
evidence-gpu:
	$(PYTHON) -m bench.methods.gpu $(if $(CIFAR100),--cifar100 $(CIFAR100))

# What the compiler made of the Triton kernels; needs no GPU.
audit: $(VENV)/test build
	$(RUN)/python -m bench.audit

# Tests, sanitizer and benchmarks on this machine's GPU, offline: with the PYTHON that has torch.
gpu-check:
	$(PYTHON) -m bench.gpu.check

# Every step of it without a GPU, up to where it says that there is none.
gpu-rehearsal: $(VENV)/test build
	$(RUN)/python -m bench.gpu.check rehearsal

clean:
	rm -rf $(VENV) build dist *.egg-info emp_kernels/_*.so
