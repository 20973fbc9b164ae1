# Two commands on a fresh machine: `make demo` and `make test`. Both install what they need into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
ARGS ?=
# cpu | gpu: chosen by what the machine has; override with `make setup TARGET=cpu`.
TARGET ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

export TUNEDOCK_HOME ?= $(CURDIR)/.home

.PHONY: setup demo test check campaign protos docs bench lock clean

MODEL := $(TUNEDOCK_HOME)/models/smollm2-135m-instruct

# Everything that needs a network happens here: the default model is part of it.
setup: $(VENV)/.ready-$(TARGET) $(MODEL)

$(MODEL): | $(VENV)/.ready-$(TARGET)
	$(BIN)/tunedock models pull

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("TuneDock needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Set PYTHON=python3.11 or newer.") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

# The sources that pip is configured with come first, so that an unreachable index costs no minutes. Torch beside all others, two
# processes for those: nothing is resolved, and unpacking keeps one core busy each.
$(VENV)/.ready-cpu: $(VENV)/bin/python requirements/cpu.txt requirements/torch-cpu.txt pyproject.toml
	@echo "setup: installing the locked CPU environment into $(VENV) (a few minutes the first time)"
	@{ $(PIP) install -qq --no-deps -r requirements/torch-cpu.txt 2>/dev/null || $(PIP) install -q --no-deps --extra-index-url $(TORCH_CPU_INDEX) -r requirements/torch-cpu.txt; } & torch=$$!; \
		sed '/^#/d' requirements/cpu.txt | tr '\n' '\0' | xargs -0 -n 32 -P 2 $(PIP) install -qq --no-deps; \
		others=$$?; wait $$torch && exit $$others
	@$(PIP) uninstall -qq -y torchvision torchaudio torchcodec 2>/dev/null || true
	@$(PIP) install -qq --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.ready-gpu: $(VENV)/bin/python requirements/gpu.txt pyproject.toml
	@echo "setup: installing the CUDA environment into $(VENV)"
	@$(PIP) install -q -c requirements/gpu.txt hatchling editables
	@$(PIP) install -q --no-build-isolation -c requirements/gpu.txt -e '.[server,trainer,gpu,postgres,s3,dev]'
	@touch $@

demo: setup
	$(BIN)/python -m examples.demo $(ARGS)

test: setup
	$(BIN)/python -m pytest $(ARGS)

campaign: setup
	$(BIN)/python -m pytest -m campaign --override-ini='addopts=--import-mode=importlib --strict-markers -ra' --timeout=1200 $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python -m mypy tests examples benchmarks
	$(BIN)/lint-imports
	$(BIN)/python protos/generate.py --check

protos: setup
	$(BIN)/python protos/generate.py

docs: setup
	$(BIN)/python docs/generate.py

bench: setup
	$(BIN)/python -m benchmarks $(ARGS)

lock: setup
	$(BIN)/python requirements/lock.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
