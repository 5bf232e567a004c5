# `make` lists all targets. No environment has to be activated: every recipe uses .venv, which is created on first use.
.DEFAULT_GOAL := help
.PHONY: help run adopt test bench lint format lock schema reference docs pictures wheel plots experiments mlflow clean
SHELL := bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)
unexport PYTHONDONTWRITEBYTECODE # otherwise every process would compile a thousand modules again

# The first Python on this machine that is new enough; choose another with make PYTHON=/path/to/python3.12.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && exit; done; echo python3)
# More options for snakemake: make run ARGS="--configfile experiments/X.yaml"
ARGS ?=
# make run V=1: Snakemake's own words instead of one calm view
V ?=
# The settings files in ARGS, which make then asks for: Snakemake would answer a missing one with a traceback.
SETTINGS = $(shell printf '%s\n' $(ARGS) | sed -nE 's/^--configfiles?=//p; /^--configfiles?$$/{n;p;}')
PORT ?= 5000
# Snakemake ends with a traceback where it cannot make this folder.
export XDG_CACHE_HOME ?= $(shell mkdir -p ~/.cache 2>/dev/null && [ -w ~/.cache ] && echo ~/.cache || echo $(CURDIR)/.cache/home)

# Always: dates do not tell whether .venv was copied or moved. Where nothing is to be done, this takes no time.
.venv/ready: FORCE
	@$(PYTHON) tools/environment.py
FORCE:

help: ## list all targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

run: .venv/ready $(SETTINGS) ## run the experiment in params.yaml, from the images to the report and the exported model; resumes after an interruption
	@snakemake --cores all $(if $(V),--quiet host reason,--logger iakd) $(ARGS)

adopt: .venv/ready $(SETTINGS) ## accept the results on disk although they were made by another version of the source code
	@snakemake --cores 1 --quiet all --touch --forceall $(ARGS) && echo "adopted: the next run starts from these results"

test: .venv/ready ## run all tests (twenty to forty minutes on two cores)
	@pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

bench: .venv/ready ## measure the speed beside other training loops (under 10 minutes); bench/gpu.py: on a GPU
	@for name in data train methods startup; do if [ -e bench/$$name.py ]; then python bench/$$name.py $(ARGS) || exit 1; fi; done
	@python bench/table.py

lint: .venv/ready ## check style, types, layers, workflow and schema
	ruff check
	ruff format --check
	mypy
	lint-imports
	snakefmt --check Snakefile workflow/Snakefile workflow
	snakemake --lint
	iakd schema | diff - workflow/schemas/params.schema.json

format: .venv/ready ## format sources and rules
	ruff format
	ruff check --fix
	snakefmt Snakefile workflow/Snakefile workflow

lock: .venv/ready ## update the lock files from pyproject.toml
	uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-annotate --no-header \
		--python-version 3.11 --extra dev --extra docs --extra postgres pyproject.toml -o requirements.lock
	printf '%s\n' snakemake-storage-plugin-s3 uv | uv pip compile --quiet --universal --generate-hashes --no-emit-index-url \
		--no-annotate --no-header --python-version 3.12 --constraints requirements.lock - -o requirements-image.lock
	sed -i "s/[0-9a-f]*  requirements.lock/$$(sha256sum < requirements.lock | cut -c1-64)  requirements.lock/" \
		workflow/envs/iakd.post-deploy.sh

schema: .venv/ready ## update the JSON schema of params.yaml
	iakd schema > workflow/schemas/params.schema.json

reference: .venv/ready ## write docs/settings.md and docs/commands.md, the references of all settings and commands
	@python tools/settings_reference.py
	@typer iakd.cli utils docs --name iakd --title Commands --output docs/commands.md > /dev/null

docs: reference ## build the site in site/; for the search: python -m http.server --directory site
	@NO_MKDOCS_2_WARNING=1 mkdocs build $(ARGS) && echo site/index.html

pictures: .venv/ready ## draw the pictures in docs/ again, with chromium; ARGS=mlflow: only one of them
	@python tools/pictures.py $(ARGS)

wheel: .venv/ready ## build the wheel and the source archive in dist/
	@hatchling build --directory dist

plots: .venv/ready ## show DVC's plots on a page that works offline; ARGS="diff HEAD": beside those of a commit
	@python tools/plots.py $(ARGS)

experiments: .venv/ready ## compare DVC's experiments: which settings changed, the best method, how far swapping leads
	@dvc exp show --only-changed --drop '.*:' --drop 'results/|src/|workflow/' $(ARGS)

mlflow: .venv/ready ## start the MLflow UI on http://mlflow.localhost:5000 (PORT=… for another port)
	@iakd track ui --port $(PORT) $(ARGS)

clean: ## delete all results, logs and caches without asking; keeps the data, MLflow's runs and .venv
	rm -rf results/*/{teachers,tune,students,evaluation,export,report} .state logs .snakemake dist build site
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
