# make demo: install, then train, predict and re-balance on generated photos. make test: install, then run the tests.
# TORCH_INDEX: index address of another build of PyTorch, such as CPU only; PyTorch's install page shows the addresses.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
DEMO := --config configs/demo.yaml
DEMO_OPTIONS ?=
# Compiling the tests in each run would take ten seconds.
unexport PYTHONDONTWRITEBYTECODE
# Parallel tests: workers of up to 1 GB each. Tests that start processes often wait, so that make test uses one worker more
# than there are cores. `make test CORES=1` needs less memory.
CORES ?= $(shell n=$$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN); echo $$((n < 4 ? n : 4)))
PYTEST := $(BIN)/python -m pytest -q --dist worksteal

.PHONY: help demo install test test-fast test-all lint format
help:
	@echo 'make demo       install, then run the three scripts on generated photos'
	@echo '                (about 4 minutes on two cores)'
	@echo 'make install    create a virtual environment in $(VENV) with all that scripts need'
	@echo 'make test       run the tests (at most 6 minutes on two idle cores)'
	@echo 'make test-all   run all tests, including the slow ones'
	@echo 'make test-fast  run the short tests that start no other process, for the edit'
	@echo '                loop (at most 60 seconds)'
	@echo 'make lint       check code, format and types with ruff and mypy'
	@echo 'make format     fix what ruff can fix'

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed, and $(PYTHON) is " + sys.version.split()[0] + "; try make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@echo 'installing into $(VENV): a few minutes and about 6 GB with the default build of PyTorch'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(if $(TORCH_INDEX),$(PIP) torch torchvision --index-url $(TORCH_INDEX))
	@$(PIP) -r requirements.txt
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	@$(PIP) -r requirements-dev.txt
	@touch $@

install: $(VENV)/installed

demo: install
	@$(BIN)/python main.py $(DEMO) --OVERWRITE True $(DEMO_OPTIONS)
	@$(BIN)/python test.py --RESUME_MODEL ./log/demo/best_model.pth
	@$(BIN)/python tau_norm.py --RESUME_MODEL ./log/demo/best_model.pth --OVERWRITE True
	@$(BIN)/python test.py --RESUME_MODEL ./log_tau/demo/best_model.pth
	@echo
	@$(BIN)/python tools/summary.py $(DEMO)

# Chromium for the tests of report pages: installed if that needs no password; without it these tests are skipped.
BROWSER = { command -v chromium || command -v chromium-browser || command -v google-chrome || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -qq -y chromium; }; } >/dev/null 2>&1 || true

test: $(VENV)/installed-dev
	@$(BROWSER)
	$(PYTEST) -n $$(($(CORES) + 1))

test-fast: $(VENV)/installed-dev
	$(PYTEST) -n $(CORES) -m 'not slow and not process and not long'

test-all: $(VENV)/installed-dev
	@$(BROWSER)
	$(PYTEST) -n $$(($(CORES) + 1)) -m ''

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
