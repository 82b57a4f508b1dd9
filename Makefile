# Two commands do everything on a bare machine with Python 3.11 or later:
#   make demo   runs the main job on images that it makes itself, and names the pictures that come out
#   make test   runs lint, types and all tests
# TORCH chooses another torch build, for example: make demo TORCH="torch --index-url <index of CUDA wheels>"
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: demo test lint types docs wheel clean

demo: $(VENV)/.installed
	$(BIN)/madclip demo --out demo

test: $(VENV)/.installed-dev
	$(MAKE) --no-print-directory lint types
	$(BIN)/pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

docs: $(VENV)/.installed-dev
	$(BIN)/mkdocs build --strict --quiet

wheel: $(VENV)/.installed-dev
	$(BIN)/python -m build --outdir dist

# torch comes first: any other request for it may pull several GB of CUDA packages.
$(VENV)/.torch:
	$(PYTHON) -c 'import sys; sys.exit("madclip needs Python 3.11 or later, this is %d.%d" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist site demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
