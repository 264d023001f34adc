# All commands of the project. They set up .venv on their own when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: help setup demo soak live-soak gpu-check test lint format typecheck check clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## create .venv with everything in it

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed; name it with: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check -q -r requirements.txt -e '.[dev]'
	@touch $(READY)

demo: $(READY)  ## train on the synthetic data, evaluate, write annotated images and a video
	$(RUN) tools/train.py configs/quickstart.yaml --resume
	$(RUN) tools/eval.py configs/quickstart.yaml
	$(RUN) tools/demo.py configs/quickstart.yaml --image 'data/quickstart/images/val_0000*.jpg' --score-threshold 0.4 --save weights/quickstart/images.jpg
	$(RUN) tools/demo.py configs/quickstart.yaml --video data/quickstart/video.mp4 --score-threshold 0.4 --save weights/quickstart/video.mp4
	@echo "images: weights/quickstart/images.jpg   video: weights/quickstart/video.mp4   plots: weights/quickstart/eval/"

soak: $(READY)  ## kill a training 50 times at random moments and compare the bytes (6 minutes on a quiet machine)
	$(RUN) -m pytest -m soak tests/train

live-soak: $(READY)  ## a stream for five minutes, broken off 50 times, four cameras, twenty viewers (9 minutes)
	$(RUN) -m pytest -m soak tests/video -s --durations=0

gpu-check: $(READY)  ## compare a GPU with the CPU and measure its speed (under 8 minutes; skipped without a GPU)
	CUBLAS_WORKSPACE_CONFIG=:4096:8 $(RUN) -m pytest -m gpu tests/gpu --durations=0 -s -rs

test: $(READY)  ## run all tests, side by side (alone: .venv/bin/python -m pytest)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --maxprocesses 8 --dist worksteal

lint: $(READY)  ## formatting and lint
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .

format: $(READY)  ## format the code
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

typecheck: $(READY)  ## mypy --strict on detector/ and tools/
	$(RUN) -m mypy

check: lint typecheck test  ## the gate: everything that must pass

clean:  ## remove .venv, caches and the synthetic data; weights stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info data/quickstart data/tiny
