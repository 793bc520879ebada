## make install     install all of FlowLLM into .venv; the targets below do it where it is needed
## make demo        run the whole pipeline on two CPU cores, in less than ten minutes after installation
## make test        run all tests: unit tests, workflow tests and one small run of the whole pipeline
## make test-fast   run the tests that are not marked slow, under three minutes on two cores
## make test-gpu    run the tests that compute on a GPU; they are skipped where there is none
## make coverage    run all tests and measure which lines of the package they execute
## make lint        check style, spelling, types, layers and the workflow
## make docs        build the documentation's pages into site/
## make config      write the comments of config.yaml, and config.schema.json, from the models
## make constraints write the versions of the present environment to envs/constraints.txt
## make clean       delete .venv, runs, site, htmlcov and .snakemake
## make help        print this list
##
## CORES=8 sets the number of cores, TESTS="tests/data -k cif" selects tests.

PYTHON ?= python3.11
CONFIG ?= workflow/config/demo.yaml
CORES ?= 2
TESTS ?=
BIN := $(CURDIR)/.venv/bin
INSTALLED := .venv/installed
PYTEST := OMP_NUM_THREADS=1 python -m pytest --numprocesses $(CORES)

export PATH := $(BIN):$(PATH)

.PHONY: help install demo test test-fast test-gpu coverage docs lint config constraints clean

help:
	@sed -n 's/^## \{0,1\}//p' Makefile

install: $(INSTALLED)

$(INSTALLED): pyproject.toml envs/constraints.txt workflow/install.sh
	bash workflow/install.sh "$(PYTHON)" .venv
	touch $@

demo: install
	snakemake --cores $(CORES) --configfile $(CONFIG) --rerun-incomplete

test: install
	$(PYTEST) $(TESTS)

test-fast: install
	$(PYTEST) -m "not slow" $(TESTS)

# Without `install`: a machine with a GPU has its own environment, with the CUDA builds.
test-gpu:
	python -m pytest -m gpu -rs tests/gpu $(TESTS)

coverage: install
	coverage erase
	OMP_NUM_THREADS=1 coverage run -m pytest --numprocesses $(CORES) $(TESTS)
	coverage combine --quiet
	coverage html --quiet
	coverage report

docs: install
	python -m pip install --quiet --disable-pip-version-check --constraint envs/constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 python -m mkdocs build --strict

lint: install
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	codespell
	mypy
	lint-imports
	snakemake --lint

config: install
	python -m flowllm.config.reference --write

constraints: install
	python workflow/constraints.py > envs/constraints.txt.new
	mv envs/constraints.txt.new envs/constraints.txt

clean:
	rm -rf .venv runs site htmlcov .snakemake
