# make demo   generate shapes, pre-train, evaluate, fine-tune; closes with a table and a picture
# make page   CLOUD=mine.ply: a small model learns generated shapes, and what it makes of a cloud of yours becomes a page
# make test   style, types, tests
# make bench  time the extensions, training steps, Point-NN, the data, the SVM (all sizes: BENCH="--device cpu"; a GPU: "--device cuda")
# All work on a machine that has only Python (with venv) and make: they create .venv and install what is missing.
PYTHON ?= python3
PIP_ARGS ?=
JOBS ?= 2
ARGS ?=
CLOUD ?=
BENCH ?= --device cpu --quick
BIN := .venv/bin

.PHONY: setup demo page test lint bench clean

setup: .venv/installed

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv

.venv/installed: requirements.txt | .venv/bin/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -r requirements.txt
	touch $@

.venv/installed-tests: tests/requirements.txt $(wildcard requirements-*.txt) .venv/installed
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -r tests/requirements.txt
	touch $@

demo: .venv/installed
	$(BIN)/python -m tools.demo $(ARGS)

lint: .venv/installed-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed-page: requirements-own-data.txt requirements-pictures.txt .venv/installed
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -r requirements-own-data.txt -r requirements-pictures.txt
	touch $@

MESHES := data/synthetic/meshes
LEARNT := experiments/demo/own-data/pre-train/ckpt-last.pth

$(MESHES): | .venv/installed-page
	$(BIN)/python -m datasets.synthetic --root data/synthetic --layouts meshes --classes chair lamp mug table --train 60 --test 20

$(LEARNT): | $(MESHES)
	$(BIN)/python main.py --config cfgs/demo/own-data.yaml --exp_name pre-train

ifeq ($(MAKECMDGOALS) $(CLOUD),page )
$(error say which file: make page CLOUD=mine.ply)
endif

page: $(LEARNT)
	$(BIN)/python -m tools.visualize --config cfgs/demo/own-data.yaml --ckpts $(LEARNT) -o pictures/mine $(CLOUD)

test: lint
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

.venv/installed-bench: benchmarks/requirements.txt requirements-library.txt .venv/installed
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -r benchmarks/requirements.txt
	touch $@

bench: .venv/installed-bench
	$(BIN)/python -m benchmarks.bench_extensions $(BENCH)
	$(BIN)/python -m benchmarks.bench_train_step $(BENCH)
	$(BIN)/python -m benchmarks.bench_train_step --method point-mae $(BENCH)
	$(BIN)/python -m benchmarks.bench_point_nn $(BENCH)
	$(BIN)/python -m benchmarks.bench_data $(BENCH)
	$(BIN)/python -m benchmarks.bench_svm $(filter --quick,$(BENCH))
	$(BIN)/python -m benchmarks.bench_export $(filter --quick,$(BENCH))

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
