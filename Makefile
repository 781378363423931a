# `make demo` and `make test` need Python >= 3.10, a C++ compiler and the package index. They make .venv, unless
# PYTHON=... names an interpreter of an environment that has what setup.py asks for (one with Detectron2, say).

VENV := .venv
PYTHON ?= $(VENV)/bin/python
BASE_PYTHON ?= python3
DATASETS ?= $(or $(DETECTRON2_DATASETS),datasets)
OUTPUT := output/spatial_embeddings_demo
DEMO_CONFIG := configs/spatial_embeddings/shapes_demo.yaml

# Threads that wait for others sleep; where they spin, another job on one of the cores holds up both.
export OMP_WAIT_POLICY ?= PASSIVE
export DETECTRON2_DATASETS := $(DATASETS)
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

.PHONY: demo test environment clean

demo: environment
	$(PYTHON) -m projects.data.shapes --preset shapes_demo --output $(DATASETS)
	$(PYTHON) train_net.py --config-file $(DEMO_CONFIG) OUTPUT_DIR $(OUTPUT)
	$(PYTHON) tools/visualize_predictions.py --config-file $(DEMO_CONFIG) --threshold 0.8 \
		--output $(OUTPUT)/pictures \
		MODEL.WEIGHTS $(OUTPUT)/model_final.pth

test: environment
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q --numprocesses auto --maxprocesses 8 --dist loadfile tests

ifeq ($(PYTHON),$(VENV)/bin/python)
environment: $(VENV)/installed
else
environment:
	@$(PYTHON) -c "import pytest, xdist, projects.config, projects.evaluation" || \
		(echo "$(PYTHON) lacks a package. Install what is missing: $(PYTHON) -m pip install -e '.[dev]'"; exit 1)
endif

# torch and torchvision come together, so that they match; the native ops are built against them.
$(VENV)/installed: setup.py $(wildcard */csrc/*)
	@$(BASE_PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
		(echo "Python >= 3.10 is needed; name one with BASE_PYTHON=..."; exit 1)
	$(BASE_PYTHON) -m venv $(VENV)
	$(PYTHON) -m pip install --upgrade pip setuptools wheel ninja
	$(PYTHON) -m pip install torch torchvision
	$(PYTHON) -m pip install --no-build-isolation --editable .[dev]
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
