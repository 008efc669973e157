# Every target makes .venv by itself; python3 and make are all it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow soak lint docs bench study release clean

# PyTorch for the CPU alone, about 1.8 GB in place of 6.5: make demo TORCH=cpu. It needs this index besides the usual one.
TORCH ?=
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

# The whole path on an embedded phantom, in about ten minutes on two cores; `make demo DATA=/path/to/MnMs` on your own.
demo: $(VENV)/.installed
	$(BIN)/nnunet-ssp demo $(if $(DATA),--data "$(DATA)")

# Each process of pytest has one thread; threads of the commands that they start give their core away while they wait.
PYTEST = OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -rs -n auto --maxprocesses 4 --dist loadfile

# The tests for every change, in about 15 minutes on two cores, 30 on older ones; ARGS="-m 'not slow'" leaves out those
# that run nnU-Net's commands.
test: $(VENV)/.installed-dev
	$(PYTEST) --no-loadscope-reorder -m 'not heavy' $(ARGS)

# The others: kills, fresh environments, whole studies, trainings on real cine and those that go on bit by bit.
test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m heavy $(ARGS)

# About an hour of kills, full disks, two jobs at once, signals and a fuzzer; goes on where it was stopped. It writes the
# table of docs/reliability.md. `make soak ARGS="--only kills"` for one kind; the disks need root and the right to mount.
soak: $(VENV)/.installed-soak
	$(BIN)/python -m tests.soak $(ARGS)

# Speed and memory as a table, in less than ten minutes on two cores; `make bench ARGS="--json bench.json"`.
bench: $(VENV)/.installed-bench
	$(BIN)/nnunet-ssp bench $(ARGS)

# A whole study in miniature, in less than 45 minutes on two cores; `make study ARGS="demooij -d 114"` for another.
study: $(VENV)/.installed-study
	$(BIN)/nnunet-ssp study $(or $(ARGS),phantom)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation as pages, in build/docs; a link within the repository that leads nowhere is an error.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx --fail-on-warning --fresh-env -c docs . build/docs
	@echo 'Pages: build/docs/README.html. Links to other places, not checked: build/docs/outside-links.txt'

# The files of a release, in dist/.
release: $(VENV)/.installed-dev
	rm -rf build dist
	$(BIN)/python -m build

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "nnunet-ssp needs Python 3.10 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'Installing nnU-Net and PyTorch into $(VENV): about $(if $(filter cpu,$(TORCH)),1.8 GB on disk after 0.5,6.5 GB on disk after 3.3) GB of download, some minutes.'
	@test -n '$(TORCH)' || command -v nvidia-smi > /dev/null || \
		echo 'There is no NVIDIA driver here: make $(MAKECMDGOALS) TORCH=cpu installs about 1.8 GB in place of 6.5, if your index has it.'
	$(if $(filter cpu,$(TORCH)),$(BIN)/python -m pip install --disable-pip-version-check torch --index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install --disable-pip-version-check --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed tests/oracles.txt
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --requirement tests/oracles.txt
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[docs]'
	touch $@

$(VENV)/.installed-soak: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[soak]'
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[bench]'
	touch $@

$(VENV)/.installed-study: $(VENV)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[study]'
	touch $@

clean:
	rm -rf $(VENV) demo study_phantom soak build dist *.egg-info
