## make demo   the whole pipeline on two CPU cores, about a quarter of an hour after installation
## make test   the unit tests and one tiny run of the whole pipeline
## make docs   the documentation's pages, into site/
## make lint   what pre-commit checks
## make help   this

PYTHON ?= python3.11
CONFIG ?= workflow/config/demo.yaml
CORES ?= 2
BIN := $(CURDIR)/.venv/bin
INSTALLED := .venv/installed

export PATH := $(BIN):$(PATH)

.PHONY: help install demo test docs lint config constraints clean

help:
	@sed -n 's/^## //p' Makefile

install: $(INSTALLED)

$(INSTALLED): pyproject.toml envs/constraints.txt workflow/install.sh
	bash workflow/install.sh "$(PYTHON)" .venv
	touch $@

demo: install
	snakemake --cores $(CORES) --configfile $(CONFIG) --rerun-incomplete

test: install
	OMP_NUM_THREADS=1 python -m pytest --numprocesses $(CORES)

docs: install
	python -m pip install --quiet --disable-pip-version-check --constraint envs/constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 python -m mkdocs build --strict

lint: install
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	codespell
	snakemake --lint

# Write the comments of config.yaml and config.schema.json again, from the models.
config: install
	python -m flowllm.config.reference --write

# Take the versions of the present environment as the tested ones.
constraints: install
	python workflow/constraints.py > envs/constraints.txt.new
	mv envs/constraints.txt.new envs/constraints.txt

clean:
	rm -rf .venv runs site .snakemake
