# make demo: install, then train, predict and re-balance on drawn photos. make test: install, then the tests.
# TORCH_INDEX: the index address of another build of PyTorch (its site's install page shows them), such as CPU only.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
DEMO := --config configs/demo.yaml
DEMO_OPTIONS ?=

.PHONY: help demo install test test-all lint format
help:
	@echo 'make demo      install, then the three scripts on drawn photos (about 4 minutes on two cores)'
	@echo 'make install   a virtual environment in $(VENV) with all that the scripts need'
	@echo 'make test      the tests (at most 10 minutes on two cores); make test-all adds the slow ones'
	@echo 'make lint      ruff, check and format; make format mends what it can'

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

# Debian's Chromium, to look at reports with: installed where that needs no password; without it those tests skip.
BROWSER = { command -v chromium || command -v chromium-browser || command -v google-chrome || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -qq -y chromium; }; } >/dev/null 2>&1 || true

test: $(VENV)/installed-dev
	@$(BROWSER)
	$(BIN)/python -m pytest -q

test-all: $(VENV)/installed-dev
	@$(BROWSER)
	$(BIN)/python -m pytest -q -m ''

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
