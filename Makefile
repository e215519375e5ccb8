# make demo   train the embedded policy on the embedded shop, from nothing, in minutes
# make test   run the whole suite
# make venv   the environment for both

PYTHON ?= python3
BIN = .venv/bin
export HF_HUB_OFFLINE = 1

.PHONY: venv demo test lint tiny build clean

venv: .venv/.installed

# torch first and pinned: an unpinned one brings gigabytes of CUDA packages
.venv/.installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: venv
	$(BIN)/accelerate launch --config_file examples/accelerate_configs/single.yaml examples/train_webshop.py

test: venv
	$(BIN)/python -m pytest

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# rebuild the embedded policies' weights
tiny: venv
	$(BIN)/python -m sdar_trl.policies.tiny
	$(BIN)/python -m sdar_trl.policies.search_qa

build: venv
	$(BIN)/python -m build

clean:
	rm -rf .venv build dist outputs *.egg-info
