# Everything a developer or a new user runs. `make help` lists the targets.
PYTHON ?= python3
PIP_FLAGS ?= --quiet --disable-pip-version-check
VENV := .venv
RUN := $(VENV)/bin/python
DEMO := build/demo
DEMO_DATA := --calib $(DEMO)/calibration.txt --tokenizer $(DEMO)/tokenizer.json
# Nothing leaves the clone: caches of the demo and the tests live in build/.
export MMCOMPILE_CACHE_DIR := $(CURDIR)/build/cache
# The checkout itself is the package: it is built in place, not installed.
export MPLCONFIGDIR := $(CURDIR)/build/cache/matplotlib
export HF_HOME := $(CURDIR)/build/cache/huggingface
export ORT_DISABLE_TELEMETRY := 1
export PYTHONPATH := $(CURDIR)
# Without compiled modules on disk every process that the tests start would compile them anew.
unexport PYTHONDONTWRITEBYTECODE

# The CUDA libraries are built where nvcc is: on the machine, or (`make nvcc`) from PyPI.
NVCC_ROOT := $(CURDIR)/build/nvcc
NVCC := $(firstword $(wildcard $(CUDACXX)) $(shell command -v nvcc 2> /dev/null) \
  $(wildcard /usr/local/cuda/bin/nvcc $(NVCC_ROOT)/nvidia/cu13/bin/nvcc))

.PHONY: help dev plugin nvcc demo check test lint types bench wheel clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-7s %s\n", $$1, $$2}'

dev: $(VENV)/.installed native  ## environment in .venv, native module built in place

$(VENV)/.installed: pyproject.toml
	@echo "installing dependencies into $(VENV) …"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install $(PIP_FLAGS) --upgrade pip
	@$(RUN) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  extras = [r for group in p["optional-dependencies"].values() for r in group]; \
	  print(*(r for r in p["dependencies"] + extras if not r.startswith("mmcompile")), sep="\n")' \
	  > $(VENV)/requirements.txt
	@$(RUN) -m pip install $(PIP_FLAGS) --requirement $(VENV)/requirements.txt
	@# CuTe's headers, an oracle of the tests; what else the package wants is of no use here.
	@$(RUN) -m pip install $(PIP_FLAGS) --no-deps nvidia-cutlass==4.2.0.0
	@touch $@

.PHONY: native
native: $(VENV)/.installed
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cmake -S . -B build/native -G Ninja -Wno-dev \
	  -DPython_EXECUTABLE=$(CURDIR)/$(RUN) -DMMCOMPILE_INPLACE=ON \
	  -DMMCOMPILE_WERROR=$(if $(CI),ON,OFF) > build/native.log 2>&1 \
	  && PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cmake --build build/native >> build/native.log 2>&1 \
	  || { cat build/native.log; exit 1; }

native: | build
build:
	@mkdir -p build

plugin: | build  ## build the CUDA libraries: kernels and TensorRT plugin (needs nvcc 13.0)
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cmake -S . -B build/cuda -Wno-dev -DMMCOMPILE_PYTHON=OFF \
	  -DMMCOMPILE_CUDA=ON $(if $(NVCC),-DMMCOMPILE_NVCC=$(NVCC)) \
	  -DMMCOMPILE_WERROR=$(if $(CI),ON,OFF) > build/cuda.log 2>&1 \
	  && PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cmake --build build/cuda --parallel 2 >> build/cuda.log 2>&1 \
	  || { cat build/cuda.log; exit 1; }

nvcc: dev  ## take nvcc 13.0 from PyPI, into build/nvcc, for `make plugin`
	@$(RUN) -m pip install $(PIP_FLAGS) --target $(NVCC_ROOT) nvidia-cuda-nvcc==13.0.* \
	  nvidia-cuda-runtime==13.0.* nvidia-cuda-cccl==13.0.* nvidia-cuda-crt==13.0.* nvidia-nvvm==13.0.*

demo: dev  ## compile a real model (MiniLM-L6) to an engine, beside those of stock baselines
	@$(if $(NVCC),,$(MAKE) --no-print-directory nvcc)
	@$(MAKE) --no-print-directory plugin
	@$(RUN) examples/minilm/prepare.py $(DEMO)
	@$(RUN) -m mmcompile $(DEMO)/model.onnx --gpu sm_120 --engine $(DEMO_DATA) \
	  --verify-data $(DEMO)/heldout.txt -o $(DEMO)/out
	@$(RUN) -m mmcompile bench $(DEMO)/model.onnx --prepare $(DEMO)/bench --gpu sm_120 \
	  $(DEMO_DATA) --engine MicroMix=$(DEMO)/out/model.onnx \
	  --point 1x128 --point 8x128 --point 8x512

check: lint types  ## style, types and the fast tests, in about two minutes
	@$(RUN) -m pytest --numprocesses 2 --dist loadfile --quiet -m "not slow"

test: dev $(if $(NVCC),plugin)  ## run all tests
	@$(RUN) -m pytest --numprocesses 2 --dist loadfile

lint: dev  ## check style and the direction of imports
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(VENV)/bin/lint-imports --no-cache
	@$(VENV)/bin/clang-format --dry-run --Werror $$(git ls-files '*.h' '*.cpp' '*.cu')

types: dev  ## check types (mypy, strict)
	@$(RUN) -m mypy

bench: dev  ## measure accuracy, packing, compile time and memory (minutes)
	@for script in packing runtime accuracy compile_time memory; do \
	  $(RUN) -m benchmarks.$$script || exit 1; done

wheel: dev  ## build the wheel into dist/
	@$(RUN) -m pip wheel $(PIP_FLAGS) --no-deps --wheel-dir dist .

clean:  ## remove everything that was built
	@rm -rf build dist $(VENV) mmcompile/*.so
