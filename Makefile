# Two commands for a new machine: `make demo` and `make test`. Each creates the environment that it needs in .venv.
#
#   PYTHON=python3.12        use another interpreter
#   VENV=/tmp/env            create the environment elsewhere
#   TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"   install torch for the CPU only

PYTHON ?= python3
VENV ?= .venv
TORCH_ARGS ?=
BIN = $(VENV)/bin
# setuptools prints long warnings about folders of data files
INSTALL = PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --constraint constraints.txt
# Installed without their dependencies, because some of them require torchvision, which would replace torch.
PEERS = torchio batchgeneratorsv2 batchgenerators fft-conv-pytorch deprecated wrapt humanize jaxtyping wadler_lindig pandas six \
	nnunetv2 acvl_utils dynamic-network-architectures threadpoolctl blosc2 numexpr msgpack ndindex httpx idna scikit-image \
	lazy_loader tifffile seaborn connected-components-3d scikit-learn joblib cloudpickle narwhals
# The reader of OME-Zarr for the slow tests, without the packages for S3 and HTTP that it requires.
OME_READER = ome-zarr ome-zarr-models pydantic-zarr dask toolz cloudpickle partd locket importlib_metadata zipp lazy-importer \
	deprecated wrapt scikit-image lazy_loader

.PHONY: demo test test-native test-forking test-others test-slow lint docs bench clean

demo: $(VENV)/.demo
	$(BIN)/medseg demo --out demo

# Several processes, because forked data workers hang in a process in which OpenVINO or ONNX Runtime has started threads,
# and because a process that trained, forked and then used OpenVINO crashed later.
NATIVE = tests/inference tests/networks
FORKING = tests/training tests/bundle

# `make -j2 test` runs two of them at once; give each one thread with OMP_NUM_THREADS=1.
test: test-native test-forking test-others

test-native: $(VENV)/.test
	$(BIN)/python -m pytest $(NATIVE)

test-forking: $(VENV)/.test
	$(BIN)/python -m pytest tests/training
	$(BIN)/python -m pytest tests/bundle

test-others: $(VENV)/.test
	$(BIN)/python -m pytest $(addprefix --ignore=,$(NATIVE) $(FORKING))

# Minutes to hours: thousands of mutated files, every exporter, the papers' sizes, kill -9 by the dozen.
test-slow: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps $(OME_READER)
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.test
	$(BIN)/python -m mkdocs build --strict --quiet
	@echo "open site/index.html"

bench: $(VENV)/.test
	$(INSTALL) --editable '.[bench]'
	$(BIN)/python -m pip install --quiet --no-deps $(PEERS)
	$(BIN)/python benchmarks/run_all.py

# torch is installed first and pinned, so that packages that require "torch" do not install another build.
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
	rm -rf demo build dist site .pytest_cache .mypy_cache .ruff_cache
