# make demo     answer a question over the document that ships with the project
# make test     run the tests
# make test-fast   run those that take no more than a moment each
# make lint     ruff, mypy, and the layers of imports
# make docs     build the documentation into site/; a warning is an error
# make notebooks   execute the notebooks and keep what they show
# make clean    remove what these made
#
# Only Python and make are needed: each command first builds the environment that it wants, once. Where there is no NVIDIA
# GPU, PyTorch is taken without CUDA; TORCH_BUILD=cuda or TORCH_BUILD=cpu says which to take.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2

QUESTION ?= In suits at common law, how much must the value in controversy exceed?
DOCUMENT ?= longformer/data/constitution.txt

python := $(VENV)/bin/python
pip_install := $(python) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-fast lint docs notebooks clean

demo: $(VENV)/.package
	$(VENV)/bin/longformer answer "$(QUESTION)" "$(DOCUMENT)"

test: $(VENV)/.development
	$(python) -m pytest -n $(JOBS)

test-fast: $(VENV)/.development
	$(python) -m pytest -n $(JOBS) -m "not slow and not exhaustive" $(FAST)

lint: $(VENV)/.development
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy
	$(VENV)/bin/lint-imports --no-cache

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --strict

notebooks: $(VENV)/.development
	$(python) notebooks/run.py

# Stamps: an environment is touched again only when what it is made from changes.
$(VENV)/.package: pyproject.toml constraints.txt scripts/install_torch.py
	@echo "Installing into $(VENV); the first time this takes a few minutes." >&2
	$(PYTHON) -m venv $(VENV)
	$(python) scripts/install_torch.py
	$(pip_install) --editable .
	@touch $@

$(VENV)/.development: $(VENV)/.package
	$(pip_install) --editable '.[test,dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.package
	$(pip_install) --editable '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) .ci/venv build dist site longformer.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find kernels longformer tests -name __pycache__ -type d -prune -exec rm -rf {} +
