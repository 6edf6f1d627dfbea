PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := $(VENV)/.demo
CUDA_VENV := .venv-cuda
CUDA_PYTHON ?= $(PYTHON)
CUDA_TORCH ?= 2.11.0

.PHONY: demo docs test test-fast test-all coverage mutants check format kernels tune face-parity cuda clean
.DELETE_ON_ERROR:

# What developers need, and what the demo needs alone.
$(READY): EXTRA = dev
$(DEMO): EXTRA = demo
$(READY) $(DEMO): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "consisid needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRA)]'
	touch $@

# A photograph (the astronaut Eileen Collins; NASA, public domain) becomes out/demo.mp4 on a machine without a GPU, with
# the commands that a user types, and a small checkpoint with seeded random weights: VARIANT=tiny or tiny-1.5.
VARIANT := tiny
demo: $(if $(wildcard $(READY)),$(READY),$(DEMO))
	mkdir -p out
	rm -rf 'out/$(VARIANT)'
	$(BIN)/python -c 'from skimage import data, io; io.imsave("out/photo.png", data.astronaut())'
	$(BIN)/consisid build '$(VARIANT)' --output 'out/$(VARIANT)' --quiet
	$(BIN)/consisid generate 'out/$(VARIANT)' --image out/photo.png --seed 42 --save-crop out/face.png --output out/demo.mp4 \
		--prompt 'An astronaut smiles at the viewer, the flag behind her moving.'
	@echo 'The weights are random: expect noise, not a face.'

# The manual, into out/docs: pages of docs/, and what docs/site makes of parsers, errors and bench/reports. A link that leads
# nowhere fails.
docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --config-file docs/site/mkdocs.yml

# One thread for each of the two workers: two that each start as many threads as there are cores wait for each other.
# What Inductor compiles stays in tests/.cache until PyTorch, the machine or the sources change. TESTS chooses, PYTEST adds.
# -P: with this folder on sys.path transformers would import kernels/ where it looks for a distribution of that name, and
# what runs of that folder would not be counted as consisid.kernels.
RUN_TESTS = OMP_NUM_THREADS=1 $(BIN)/python -P -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(PYTEST)

test: $(READY) compiler
	$(RUN_TESTS) $(TESTS)

# For the inner loop: without what compiles, interprets kernels or makes many videos.
test-fast: $(READY)
	$(RUN_TESTS) -m 'not slow and not full' --ignore=tests/bench $(TESTS)

# All there is without a GPU: an hour and more on two cores.
test-all: $(READY) compiler
	$(RUN_TESTS) -m '' --hypothesis-profile=nightly $(TESTS)
	$(MAKE) face-parity mutants
	$(MAKE) cuda TESTS="tests/hollow -m ''"

# Lines by room, also of what commands and forks of the tests run; TESTS chooses.
coverage: $(READY) compiler
	$(RUN_TESTS) --cov=consisid.kernels --cov=consisid.engine --cov=consisid.export --cov=consisid.bench --cov-report= $(TESTS)
	$(BIN)/python tests/support/coverage_by_room.py

# Faults are put into a copy of the sources, and tests have to see them: docs/mutants.md. ONLY='regular expression' chooses.
mutants: $(READY)
	$(BIN)/python tests/mutants/run.py $(if $(ONLY),--only '$(ONLY)')

.PHONY: compiler
compiler:
	@command -v "$${CXX:-g++}" >/dev/null || { echo 'The tests of compiled engines need a C++ compiler: install g++, or run make test-fast.' >&2; exit 1; }

# The face path against the original implementations, in a venv that has them.
face-parity: $(READY)
	tests/face_parity/run $(BIN)/python

# The CUDA path on a machine without a GPU: PyTorch's CUDA build on a device that computes nothing (tests/hollow/README.md).
# Where that build or a C compiler cannot be had, it says so and does no more. TESTS chooses what of it runs.
cuda:
	tests/hollow/run $(CUDA_VENV) '$(CUDA_PYTHON)' '$(CUDA_TORCH)' $(TESTS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Compile every kernel for every architecture, with no GPU, and write kernels/aot/resources.json, and what attention's loop
# executes with each option, kernels/aot/instructions.json; tests compare, three of five architectures in CI.
kernels: $(READY)
	$(BIN)/python -m consisid.kernels.aot.resources
	$(BIN)/python -m consisid.kernels.aot.instructions

# Measure joint attention on the GPU of this machine and write its rows of kernels/tuning.json, after each group of
# candidates; an interrupted run goes on. OUTPUT=file writes the table there too.
tune: $(READY)
	$(BIN)/python -m consisid.kernels.tools.autotune $(if $(OUTPUT),--output '$(OUTPUT)')

clean:
	rm -rf $(VENV) .venv-parity $(CUDA_VENV) tests/hollow/build tests/.cache out build dist *.egg-info
