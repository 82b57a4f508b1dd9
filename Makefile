# Two commands do everything on a bare machine with Python 3.11 or later:
#   make demo   runs the main job on images that it makes itself, and names the pictures that come out
#   make test   runs lint, types and all tests
# For whoever changes it:
#   make tools     Debian's programs that tests ask for a second opinion (as root); without them those tests are skipped
#   make quick     lint, types and the tests that take seconds
#   make soak      what takes long by nature, in full; `make test` runs a seeded twentieth of it
#   make coverage  all tests with branch coverage
#   make pages     the pages of madclip serve from their sources (needs Node 20.19 or later; users never do)
#   make pages-shots  screenshots of every page in both themes and widths, into shots/
#   make newest    all tests against the newest releases of everything, in .venv-newest
# TORCH chooses another torch build, for example: make demo TORCH="torch --index-url <index of CUDA wheels>"
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
# A worker holds torch and some models: four do not fill the memory of a laptop.
PYTEST := $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist worksteal

.PHONY: demo test tools quick soak coverage newest lint types docs wheel pages pages-shots clean

demo: $(VENV)/.installed
	$(BIN)/madclip demo --out demo

test: $(VENV)/.installed-dev
	$(MAKE) --no-print-directory lint types
	$(PYTEST)

tools:
	apt-get -o DPkg::Lock::Timeout=300 install --yes --quiet --no-install-recommends orthanc orthanc-dicomweb dicom3tools nginx

quick: $(VENV)/.installed-dev
	$(MAKE) --no-print-directory lint types
	$(PYTEST) -m 'not slow and not soak and not browser'

soak: $(VENV)/.installed-dev
	MADCLIP_SOAK=full $(BIN)/pytest -m soak --timeout=7200

coverage: $(VENV)/.installed-dev
	$(PYTEST) --cov=madclip --cov-branch --cov-report=term:skip-covered

# Constraints are left out, so that releases which came after them are tried; never part of CI.
newest:
	$(MAKE) --no-print-directory VENV=.venv-newest .venv-newest/.torch
	.venv-newest/bin/pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager --editable '.[dev]' $(TORCH)
	.venv-newest/bin/pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

docs: $(VENV)/.installed-dev
	$(BIN)/mkdocs build --strict --quiet

wheel: $(VENV)/.installed-dev
	$(BIN)/python -m build --outdir dist

pages:
	npm --prefix pages ci --no-audit --no-fund
	npm --prefix pages run check
	npm --prefix pages run build

pages-shots: $(VENV)/.installed-dev
	$(BIN)/python tools/pages_shots.py shots

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
	rm -rf $(VENV) .venv-newest build dist site demo shots pages/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis
