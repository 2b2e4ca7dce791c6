PYTHON ?= python3
VENV ?= .venv
# Test processes; each takes about 2 GB.
JOBS ?= 2
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help demo test test-slow goldens lint mutate bench clean

help:
	@echo "make demo       run a video transformer dense and sparse on this machine and compare"
	@echo "make test       make the environment and run the tests (about 10 minutes on 2 cores)"
	@echo "make test-slow  the tests that take minutes each"
	@echo "make goldens    write the printed outputs in tests/goldens and docs/debugging.md anew"
	@echo "make lint       ruff and mypy"
	@echo "make mutate     put known faults into the kernels and see the tests notice (about 12 minutes)"
	@echo "make bench      benchmark the CPU engine against dense attention and FlexAttention"

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[test,lint]"
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python examples/quickstart.py

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadfile

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow -n $(JOBS)

goldens: $(INSTALLED)
	UPDATE_GOLDENS=1 $(BIN)/python -m pytest -q tests/test_report.py tests/test_cli.py tests/test_dump.py tests/test_debugging_page.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/mypy svg_compile passes kernels

mutate: $(INSTALLED)
	$(BIN)/python tests/mutation/run.py

bench: $(INSTALLED)
	$(BIN)/python -m svg_compile.bench cpu

clean:
	rm -rf $(VENV) build dist out *.egg-info
