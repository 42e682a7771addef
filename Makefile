# `make` lists the targets. Everything happens in $(VENV); nothing outside it is touched.
PYTHON ?= python3
VENV ?= .venv
MODEL ?= smollm2-135m
QUESTION ?= Why is the sky blue?
# Two processes: one alone leaves a core idle while it compiles.
PYTEST_ARGS ?= -n 2
# Only for `make lock`.
PYTHON311 ?= python3.11
PYTHON312 ?= python3.12

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Twice quiet: errors only.
INSTALL := $(PIP) install -qq
PINS = constraints/$$($(BIN)/python -c 'import sys; print("py311" if sys.version_info < (3, 12) else "py312")').txt
SOURCES := pyproject.toml constraints/py311.txt constraints/py312.txt

.DEFAULT_GOAL := help
.PHONY: help install dev demo lint test test-slow docs notebooks site lock clean
.SILENT:

help: ## List the targets.
	grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 20

install: $(VENV)/.installed ## Make .venv with the console script jaxdecode in it.

$(VENV)/.installed: $(SOURCES)
	command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 or later, or call make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"error: $(PYTHON) is Python {v[0]}.{v[1]}, but jaxdecode needs 3.11 or later; call make PYTHON=python3.12 or another one.")'
	# A venv without a working pip is what an interrupted or moved one looks like.
	$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	echo "installing jaxdecode into $(VENV) with $$($(BIN)/python -V) (some minutes the first time)"
	$(INSTALL) --constraint $(PINS) --editable .
	touch $@

dev: $(VENV)/.installed-dev ## Add the tools of `make test` to .venv.

$(VENV)/.installed-dev: $(VENV)/.installed
	echo "installing test tools into $(VENV)"
	$(INSTALL) --constraint $(PINS) --editable '.[dev]'
	touch $@

demo: install ## Fetch a small model and let it answer a question.
	echo "$(MODEL) answers: $(QUESTION)"
	$(BIN)/jaxdecode generate --model $(MODEL) --message "$(QUESTION)" --max-new-tokens 256 --stream --progress

lint: dev ## Check style, format and types.
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/pyright --pythonpath $(BIN)/python
	echo "lint: ok"

test: lint ## Run lint and the fast tests.
	$(BIN)/python -m pytest -q $(PYTEST_ARGS)

test-slow: dev ## Run the tests that need real weights or minutes.
	XLA_FLAGS= $(BIN)/python -m pytest -q -m slow $(PYTEST_ARGS)

docs: dev ## Renew the tables of methods in docs/methods.md and README.md.
	text=$$(sed '/^| method |/,$$d' docs/methods.md) && table=$$($(BIN)/python -m jaxdecode methods --markdown) && \
		printf '%s\n\n%s\n' "$$text" "$$table" > docs/methods.md
	$(BIN)/python docs/families.py

notebooks: dev ## Renew the notebooks from their scripts in docs/notebooks.
	# Cells that stay the same keep their ids.
	$(BIN)/jupytext --quiet --update --to ipynb docs/notebooks/*.py

site: $(VENV)/.installed-docs ## Build the documentation into docs/_build; warnings are errors.
	$(BIN)/python -m sphinx --quiet --fresh-env --write-all --fail-on-warning --keep-going docs docs/_build
	echo "site: docs/_build/index.html"

$(VENV)/.installed-docs: $(VENV)/.installed
	echo "installing Sphinx into $(VENV)"
	$(INSTALL) --constraint $(PINS) --editable '.[docs]'
	touch $@

lock: ## Pin what is newest now in constraints/, for both Pythons.
	$(call pin,$(PYTHON311),constraints/py311.txt,3.11)
	$(call pin,$(PYTHON312),constraints/py312.txt,3.12 and later)

# $(call pin,python,file,which Python versions)
define pin
echo "resolving $(2)"
set -e; work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; \
$(1) -m venv "$$work/venv"; \
"$$work/venv/bin/python" -m pip install -qq --disable-pip-version-check --editable '.[dev,docs,hub]'; \
{ echo "# What is installed on Python $(3); written by make lock."; \
  "$$work/venv/bin/python" -m pip freeze --disable-pip-version-check --exclude-editable; } > "$$work/pins"; \
cp "$$work/pins" $(2)
endef

clean: ## Remove .venv and what tools have cached.
	rm -rf $(VENV) docs/_build docs/families .pytest_cache .ruff_cache .hypothesis
	find jaxdecode tests -name __pycache__ -type d -prune -exec rm -rf {} +
