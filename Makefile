# Two commands: `make demo` and `make test`. Both make .venv first where it is not there.
.DEFAULT_GOAL := help
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# apt-get as root, through sudo, or not at all
APT := $(shell if ! command -v apt-get >/dev/null; then :; elif [ "$$(id -u)" = 0 ]; then echo apt-get; \
	elif command -v sudo >/dev/null; then echo sudo apt-get; fi)

.PHONY: help env demo test test-slow lint format lock golden browser triton image containers clean

help:  ## say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

env: $(INSTALLED)  ## make .venv with the pinned dependencies

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "terrafine needs Python 3.11; name it: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); [ -n "$(APT)" ] && \
		$(APT) update -qq && $(APT) install -y -qq python3-venv && $(PYTHON) -m venv $(VENV); } || \
		{ rm -rf $(VENV); echo "no virtual environment could be made: install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	@PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -c 'import cv2' 2>/dev/null || $(MAKE) --no-print-directory opencv-libraries
	@touch $@

# opencv-python links to libraries that a bare machine lacks
.PHONY: opencv-libraries
opencv-libraries:
	@[ -n "$(APT)" ] || { echo "opencv needs libGL and glib: install libgl1 and libglib2.0-0"; exit 1; }
	$(APT) update -qq && $(APT) install -y -qq --no-install-recommends libgl1 libglib2.0-0 libxcb1
	$(BIN)/python -c 'import cv2'

demo: $(INSTALLED)  ## map North Carolina end to end into demo/ (minutes)
	$(BIN)/terrafine demo --into demo

# JOBS tests at a time with one thread each: more of torch's threads than cores spin against each other
JOBS := 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist worksteal

test: $(INSTALLED) browser triton prometheus  ## the tests, without the slow ones
	$(PYTEST) -m 'not slow'

test-slow: $(INSTALLED) browser triton prometheus containers  ## the slow ones: the demo, the Zion scene, Ray, the benchmarks
	$(PYTEST) -m slow

# the report is tested in a real browser; without one those tests skip and say so
browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
		{ [ -n "$(APT)" ] && $(APT) update -qq && $(APT) install -y -qq --no-install-recommends chromium >/dev/null; } || \
		echo "no browser could be installed: the browser tests will skip"

# alerts and metrics are tested with the real programs; without them those tests skip and say so
.PHONY: prometheus
prometheus:
	@command -v promtool >/dev/null || \
		{ [ -n "$(APT)" ] && $(APT) update -qq && $(APT) install -y -qq --no-install-recommends prometheus >/dev/null; } || \
		echo "no prometheus could be installed: the tests with it will skip"

# a real Triton: its wheel clashes with numpy 2, so it has a folder of its own; without it the tests
# that need it skip and say so
TRITON := nvidia-pytriton==0.7.0
triton: .triton/.installed  ## the Triton server that tests and `terrafine serve` run

.triton/.installed: | $(INSTALLED)
	@rm -rf .triton
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .triton $(TRITON) && touch $@ || \
		{ rm -rf .triton; echo "$(TRITON) could not be installed: the tests with a real Triton will skip"; }

# the image is built and run in a Docker daemon that the tests start; without one they skip and say so
containers:
	@command -v dockerd >/dev/null && command -v debootstrap >/dev/null || \
		{ [ -n "$(APT)" ] && $(APT) update -qq && \
		$(APT) install -y -qq --no-install-recommends docker.io debootstrap >/dev/null; } || \
		echo "no Docker daemon could be installed: the tests of the image will skip"

VARIANT := cpu
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' terrafine/__init__.py)
# the name that a kubelet gives to terrafine:VERSION; buildah would put localhost/ before it
IMAGE := docker.io/library/terrafine:$(VERSION)$(if $(filter cuda,$(VARIANT)),-cuda)
# host: the package index is reached as this machine reaches it
IMAGE_BUILD = --network host --tag $(IMAGE) --build-arg VARIANT=$(VARIANT) --build-arg VERSION=$(VERSION) \
	--build-arg REVISION=$(shell git rev-parse HEAD 2>/dev/null || echo unknown) \
	$(foreach name,PIP_EXTRA_INDEX_URL PIP_FIND_LINKS,$(if $($(name)),--build-arg $(name)=$($(name))))
image:  ## the container image, with docker or buildah (VARIANT=cuda: with CUDA; docs/image.md)
	@if docker info >/dev/null 2>&1; then docker build $(IMAGE_BUILD) . && \
		docker image inspect --format '$(IMAGE): {{.Size}} bytes' $(IMAGE); \
	elif command -v buildah >/dev/null; then buildah build $(IMAGE_BUILD) . && \
		buildah images --format '{{.Name}}:{{.Tag}}: {{.Size}}' $(IMAGE); \
	else echo "neither a Docker daemon nor buildah is here: install one of them"; exit 1; fi

lint: $(INSTALLED)  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

golden: $(INSTALLED)  ## compile the pipelines anew after a change that is meant
	$(BIN)/terrafine pipeline compile --manifests --namespace kubeflow --into tests/contract

lock: $(INSTALLED)  ## resolve the newest allowed versions into requirements.lock
	$(BIN)/pip-compile --quiet --extra dev --allow-unsafe --strip-extras --no-emit-index-url \
		--no-emit-find-links --no-header --output-file requirements.lock pyproject.toml
	sed -i -E 's/^(torch==[0-9.]+)\+cpu/\1/' requirements.lock

clean:  ## remove the environment and what the demo made
	rm -rf $(VENV) .triton demo runs
