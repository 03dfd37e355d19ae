# Two commands on a fresh machine: `make demo` and `make test`. Each makes the environment it needs in .venv.
#
#   PYTHON=python3.12        another interpreter
#   VENV=/tmp/env            another place for the environment
#   TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"   CPU-only torch where the index serves CUDA builds

PYTHON ?= python3
VENV ?= .venv
TORCH_ARGS ?=
BIN = $(VENV)/bin
# setuptools remarks at length that folders of data files could be packages
INSTALL = PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --constraint constraints.txt
# without their dependencies: some of them ask for torchvision, which would replace torch
PEERS = torchio batchgeneratorsv2 batchgenerators fft-conv-pytorch deprecated wrapt humanize jaxtyping wadler_lindig pandas six \
	nnunetv2 acvl_utils dynamic-network-architectures threadpoolctl blosc2 numexpr msgpack ndindex httpx idna scikit-image \
	lazy_loader tifffile

.PHONY: demo test lint bench clean

demo: $(VENV)/.demo
	$(BIN)/medseg demo --out demo

# Three processes: the thread pools of OpenVINO, ONNX Runtime and compiled graphs do not mix with forked data workers.
NATIVE = tests/inference tests/networks
FORKING = tests/training tests/bundle

test: $(VENV)/.test
	$(BIN)/python -m pytest $(addprefix --ignore=,$(NATIVE) $(FORKING))
	$(BIN)/python -m pytest $(NATIVE)
	$(BIN)/python -m pytest $(FORKING)

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.test
	$(INSTALL) --editable '.[bench]'
	$(BIN)/python -m pip install --quiet --no-deps $(PEERS)
	$(BIN)/python benchmarks/run_all.py

# torch goes first and pinned: a later package that only asks for "torch" must find it satisfied
$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(INSTALL) $(TORCH_ARGS) torch
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(INSTALL) --editable '.[train]'
	touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(INSTALL) --editable '.[test]'
	touch $@ $(VENV)/.demo

clean:
	rm -rf demo build dist .pytest_cache .mypy_cache .ruff_cache
