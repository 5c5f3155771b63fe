# Everything runs from here; `make help` lists the targets. They set up all they need in .venv.

PYTHON ?= python3
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
BUILD := build/dev

# FLASH_ATTN2_CUDA=off make build: the options of CMakeLists.txt come from the environment.
OPTIONS := FLASH_ATTN2_CUDA FLASH_ATTN2_CUDA_ARCHS FLASH_ATTN2_HEAD_DIMS FLASH_ATTN2_WERROR \
           FLASH_ATTN2_PORTABLE FLASH_ATTN2_CUTLASS_INCLUDE_DIR FLASH_ATTN2_CUDA_INCLUDE_DIRS
CONFIGURE = $(BIN)/cmake -S . -B $(BUILD) -G Ninja --log-level=NOTICE \
            -DCMAKE_MAKE_PROGRAM=$(BIN)/ninja -DPython_EXECUTABLE=$(BIN)/python \
            $(foreach name,$(OPTIONS),$(if $($(name)),"-D$(name)=$($(name))"))
COMPILE = $(BIN)/cmake --build $(BUILD) --parallel $(JOBS)
CXX_FILES = git ls-files -co --exclude-standard '*.h' '*.cpp' '*.cu' '*.cuh'
PYTHON_FILES := flash_attn2 tests benchmarks examples tools distributions setup.py

.DEFAULT_GOAL := help
.PHONY: help setup build demo bench test io-page fuzz sanitize sanitize-short test-torch \
        test-torch-short test-integrations docs cuda-check cuda-check-short kernel-time mutants lint format wheel \
        wheel-short install-check gpu gpu-setup gpu-test gpu-bench gpu-report clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.stamp ## Create .venv with the pinned requirements

$(VENV)/.stamp: requirements-dev.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "Python 3.10 or later is needed: make PYTHON=/path/to/python3"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip --disable-pip-version-check install --quiet -r requirements-dev.txt
	@echo $(CURDIR) > $$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')/checkout.pth
	@touch $@

build: setup ## Build the native modules next to the Python files
	$(CONFIGURE)
	$(COMPILE) --target native_modules

demo: build ## Run the main benchmark in a short form
	$(BIN)/python -m flash_attn2 bench --demo

bench: build ## Run the main benchmark
	$(BIN)/python -m flash_attn2 bench

test: setup ## Build all, emulator included, and run the C++ and Python tests
	$(CONFIGURE) -DFLASH_ATTN2_EMULATOR=ON -DFLASH_ATTN2_TESTS=ON
	$(COMPILE)
	$(BIN)/ctest --test-dir $(BUILD) --output-on-failure --parallel $(JOBS)
	FLASH_ATTN2_REQUIRE_EMULATOR=1 $(BIN)/python -m pytest -n 2 -q

io-page: build ## Write docs/io.md anew
	$(BIN)/python -m flash_attn2 io --docs docs/io.md > /dev/null

# Problems of the fuzzer: how many, of which series, on which backend.
N ?= 2000
SEED ?= 0
BACKEND ?= cpu

fuzz: setup ## Run N random problems of the series SEED on BACKEND (cpu, sm80-emulated, sm90-emulated)
	cd tests && $(BIN)/python -m fuzz --problems $(N) --seed $(SEED) --backend $(BACKEND)

sanitize: setup ## Run tests and fuzzer of the CPU family under ASan, UBSan and TSan
	$(BIN)/python -m tools.sanitize --jobs $(JOBS)

sanitize-short: setup ## Likewise, a selection of a few minutes
	$(BIN)/python -m tools.sanitize --jobs $(JOBS) --short

# A release of torch that is promised to work.
TORCH ?= 2.4.1

test-torch: build ## Run the CPU tests under torch $(TORCH), in an environment of its own
	$(BIN)/python -m tools.test_torch $(TORCH)

test-torch-short: build ## Likewise, a selection of a few minutes
	$(BIN)/python -m tools.test_torch $(TORCH) --short

test-integrations: build ## Run the tests with other libraries, in an environment of their own
	$(BIN)/python -m tools.test_integrations

docs: build ## Build the documentation's site into build/docs
	$(BIN)/python -m tools.docs

# Compute capabilities whose machine code is checked.
ARCHS ?= 80 90

cuda-check: setup ## Compile every CUDA kernel and check its machine code (no GPU needed)
	$(BIN)/python -m tools.cuda_check --jobs $(JOBS) --archs $(ARCHS)

cuda-check-short: setup ## Likewise, the plain kernels for sm_80
	$(BIN)/python -m tools.cuda_check --jobs $(JOBS) --archs 80 --filter plain

# Machines that kernel-time predicts for (tools/kernel_time/machines.py).
MACHINES ?= A100

kernel-time: setup ## Predict the time of the plain CUDA kernels from their machine code
	$(BIN)/python -m tools.kernel_time --jobs $(JOBS) --machines $(MACHINES)

mutants: setup ## Count the faults of CUDA kernels that the tests notice
	$(BIN)/python -m tools.mutants --jobs $(JOBS)

lint: setup ## Check formatting, style and types
	$(BIN)/ruff check $(PYTHON_FILES)
	$(BIN)/ruff format --check $(PYTHON_FILES)
	$(BIN)/mypy flash_attn2 tools
	$(CXX_FILES) | xargs $(BIN)/clang-format --dry-run -Werror
	! git grep --untracked -nIE '[[:blank:]]$$'

format: setup ## Format all sources in place
	$(BIN)/ruff check --fix $(PYTHON_FILES)
	$(BIN)/ruff format $(PYTHON_FILES)
	$(CXX_FILES) | xargs $(BIN)/clang-format -i

# Interpreters to build wheels for; all supported ones of this machine if empty.
PYTHONS ?=

wheel: setup ## Build wheels for release into dist/, for every Python and with CUDA
	$(BIN)/python -m tools.wheel --jobs $(JOBS) $(PYTHONS)

wheel-short: setup ## Likewise, for the Python of .venv alone and without CUDA
	FLASH_ATTN2_CUDA=off $(BIN)/python -m tools.wheel --jobs $(JOBS) $(BIN)/python

install-check: ## pip install . into a clean environment and call the package there
	rm -rf build/install-check
	$(PYTHON) -m venv build/install-check
	build/install-check/bin/python -m pip --disable-pip-version-check install --quiet \
	  -c constraints.txt .
	cd build/install-check && bin/python $(CURDIR)/tools/install_check.py

# Asked before anything is installed, and again of torch before anything is built.
gpu:
	@$(PYTHON) -m tools.detect_cuda --need-gpu

gpu-setup: gpu
	@$(MAKE) --no-print-directory setup
	@$(BIN)/python -m tools.detect_cuda --need-torch

gpu-test: gpu-setup ## Run the Python tests on the GPU of this machine
	$(CONFIGURE) -DFLASH_ATTN2_CUDA=on
	$(COMPILE) --target native_modules
	$(BIN)/python -m pytest -q -k cuda

gpu-bench: gpu-setup ## Run the main benchmark on the GPU of this machine
	$(CONFIGURE) -DFLASH_ATTN2_CUDA=on
	$(COMPILE) --target native_modules
	$(BIN)/python -m flash_attn2 bench --device cuda

# Of the report: how long it may take, and options (python -m tools.gpu_report --help).
MINUTES ?= 6
REPORT ?=

gpu-report: gpu ## Build, check and measure on this machine's GPU with PYTHON; installs nothing
	$(PYTHON) -m tools.gpu_report --minutes $(MINUTES) $(REPORT)

clean: ## Remove what was built (.venv and third_party stay)
	rm -rf build dist *.egg-info flash_attn2/*.so
