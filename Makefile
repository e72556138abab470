# make demo       train, attack and report on a bare machine with Python 3.11 or newer; a few minutes on two CPU cores
# make test       the tests, about five minutes on two idle cores, with representative cases of large products
# make test-all   every test
# make test-avx2  the tests that rounding could affect, as on an x86 processor with AVX2 and without AVX-512
# make check      lint and types
# make bench      speed beside the plain loops, below 15 minutes; fails where a ratio fell by more than 15 %
# make lock       renew requirements.lock from pyproject.toml

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-all test-avx2 check bench lock clean

demo: $(INSTALLED)
	$(BIN)/taet demo

# One thread per worker: the tests' networks are too small to share, and two workers then use two cores.
# A file's tests stay together, so that what they share is made once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test: $(INSTALLED)
	$(PYTEST) -m "not full"

test-all: $(INSTALLED)
	$(PYTEST)

# No test may depend on the last digits of a trained network. Other processors run other kernels, with other rounding.
test-avx2: $(INSTALLED)
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(PYTEST) -m "not full" \
	  tests/attacks tests/losses tests/methods tests/models tests/training tests/test_examples.py

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The figures count on a machine that does nothing else.
bench: $(INSTALLED)
	$(BIN)/python benchmarks/run.py

$(INSTALLED): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "taet needs Python 3.11 or newer: make demo PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing the pinned packages into $(VENV) (PyTorch is large: some minutes)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	touch $(INSTALLED)

lock:
	rm -rf .lock-venv
	$(PYTHON) -m venv .lock-venv
	.lock-venv/bin/python -m pip install --quiet --editable '.[dev]'
	{ sed -n '/^#/p' requirements.lock; .lock-venv/bin/python -m pip freeze --exclude-editable; } > requirements.new
	mv requirements.new requirements.lock
	rm -rf .lock-venv

clean:
	rm -rf $(VENV) .lock-venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
