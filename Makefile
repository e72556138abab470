# make demo       train, attack and report on a bare machine with Python 3.11 or newer; about 4 minutes after the installation, on two cores
# make test       the tests, with representative cases of large products
# make test-all   every test
# make test-avx2  the tests that rounding could affect, as on an x86 processor with AVX2 and without AVX-512
# make test-lowest  the tests with the lowest versions of the packages that pyproject.toml allows
# make fuzz       changed files and command lines for SECONDS=60, each of which must end well or in one line
# make check      lint and types
# make bench      speed beside the plain loops, about ten minutes; fails where a ratio fell by more than 15 %
# make results    renew every page that follows from the code or the committed cards
# make docs       the documentation as a site, build/site/index.html; a link that leads nowhere is an error
# make lock       renew requirements.lock from pyproject.toml, with the hashes of all files
# make sbom       write sbom.cdx.json, the software bill of materials (CycloneDX)
# make wheel      build the wheel of the last commit; built twice, it has one SHA-256

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-all test-avx2 test-lowest fuzz check bench results docs lock sbom wheel clean

demo: $(INSTALLED)
	$(BIN)/taet demo

# One thread per worker: the tests' networks are too small to share, and two workers then use two cores.
# A file's tests stay together, so that what they share is made once, in the order of conftest.py, long files first;
# compiled modules are kept for the next process.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(INSTALLED)
	$(PYTEST) -m "not full"

test-all: $(INSTALLED)
	$(PYTEST)

# No test may depend on the last digits of a trained network. Other processors run other kernels, with other rounding.
test-avx2: $(INSTALLED)
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(PYTEST) -m "not full" \
	  tests/attacks tests/losses tests/methods tests/models tests/training tests/test_examples.py

# An environment of its own, since the pinned packages are newer.
test-lowest: .lowest-venv/.installed
	OMP_NUM_THREADS=1 .lowest-venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not full"

.lowest-venv/.installed: pyproject.toml
	$(PYTHON) -m venv .lowest-venv
	.lowest-venv/bin/python -m pip install --quiet --disable-pip-version-check uv
	.lowest-venv/bin/uv pip install --quiet --python .lowest-venv/bin/python --resolution lowest-direct --upgrade \
	  --extra dev --requirement pyproject.toml
	.lowest-venv/bin/uv pip install --quiet --python .lowest-venv/bin/python --no-deps --editable .
	touch $@

SECONDS ?= 60
fuzz: $(INSTALLED)
	$(BIN)/python tests/fuzz.py --seconds $(SECONDS)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@for folder in papers performance examples docs; do \
	  MYPYPATH=src:papers:$$folder $(BIN)/mypy --config-file .ci/mypy-scripts.ini $$folder/*.py || exit 1; \
	done
	@MYPYPATH=src:. $(BIN)/mypy --config-file .ci/mypy-scripts.ini results/*.py

# The figures count on a machine that does nothing else.
bench: $(INSTALLED)
	$(BIN)/python performance/run.py

results: $(INSTALLED)
	$(BIN)/python docs/render.py --write

# mkdocs has an environment of its own, so that nothing else depends on its packages.
docs: $(INSTALLED) .docs-venv/.installed
	$(BIN)/python docs/site.py
	NO_MKDOCS_2_WARNING=1 .docs-venv/bin/mkdocs build --strict --quiet

.docs-venv/.installed: docs/requirements.lock
	$(PYTHON) -m venv .docs-venv
	.docs-venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $<
	touch $@

$(INSTALLED): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "taet needs Python 3.11 or newer: make demo PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing the pinned packages into $(VENV) (PyTorch is large: some minutes)"
	$(PIP) --require-hashes --requirement requirements.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $(INSTALLED)

# Every package with the hashes of its files for every platform; pip refuses any other file.
LOCKED := .lock-venv/bin
lock:
	rm -rf .lock-venv
	$(PYTHON) -m venv .lock-venv
	$(LOCKED)/python -m pip install --quiet uv
	$(LOCKED)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra dev --generate-hashes \
	  --no-header --no-annotate --output-file requirements.new pyproject.toml
	{ sed -n '/^#/p' requirements.lock; cat requirements.new; } > requirements.both
	mv requirements.both requirements.lock
	rm -rf .lock-venv requirements.new

# In a fresh environment: it lists what is installed.
sbom: $(INSTALLED)
	rm -rf .lock-venv
	$(PYTHON) -m venv .lock-venv
	$(LOCKED)/python -m pip install --quiet cyclonedx-bom
	$(LOCKED)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON -o sbom.cdx.json $(VENV)
	rm -rf .lock-venv

# The last commit gives the same bytes each time: its files, its time, its setuptools, and one set of permissions.
wheel: $(INSTALLED)
	rm -rf build/wheel && mkdir -p build/wheel
	umask 022 && git archive HEAD | tar xf - --no-same-permissions -C build/wheel && cd build/wheel && \
	  SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(abspath $(BIN))/python -m pip wheel --quiet \
	  --no-deps --no-build-isolation --wheel-dir "$(CURDIR)/dist" .
	rm -rf build/wheel
	cd dist && sha256sum *.whl

clean:
	rm -rf $(VENV) .lock-venv .lowest-venv .docs-venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
