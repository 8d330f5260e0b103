# The two commands of a fresh machine are `make demo` and `make test`. Everything is installed into .venv, kernels
# are compiled into .venv/cache; nothing is written outside the checkout.

PYTHON ?= python3
BIN := .venv/bin
export VECDB_CACHE_DIR := $(CURDIR)/.venv/cache
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export MPLCONFIGDIR := $(CURDIR)/.venv/cache/matplotlib

.PHONY: demo test test-slow lint format bench proto docs wheel clean

demo: .venv/demo ## five searches over the documentation found on this machine; leaves demo.db
	$(BIN)/python examples/demo.py

test: .venv/test .venv/warm ## everything but the long rounds
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: .venv/test .venv/warm ## hundreds of crash rounds, and the encoder whose library takes a GB
	$(BIN)/python -m pip install --quiet --editable '.[sentence-transformers]'
	$(BIN)/python -m pytest -n 2 -m slow -o faulthandler_timeout=3600  # a test takes half an hour, and printing where it is can crash it

lint: .venv/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/bench .venv/warm ## indexes side by side in about five minutes: a table, plots, and lines in bench/results/
	$(BIN)/python -m bench run bench/configs/quick.toml

proto: .venv/test ## the compiled description of proto/, which clients and servers are made of
	$(BIN)/python -m grpc_tools.protoc -Iproto -o vecdb/wire/contract.binpb proto/vecdb/v1/*.proto

docs: .venv/docs
	$(BIN)/mkdocs build --strict

wheel: .venv/test
	$(BIN)/python -m build --wheel --installer pip

clean:
	rm -rf .venv dist build site demo.db *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis bench/.envs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit("vecdb needs Python 3.11 or later; say `make PYTHON=python3.12 …`" if sys.version_info < (3, 11) else 0)'
	@echo "making .venv"
	@$(PYTHON) -m venv .venv
	@touch $@

# One mark for each extra, so that a command installs what it needs and no more. The tests also compare with hnswlib, which
# is compiled when it is installed; where it cannot be, they do without.
.venv/demo .venv/test .venv/lint .venv/bench .venv/docs: .venv/%: pyproject.toml | .venv/python
	@echo "installing vecdb[$*] into .venv"
	@$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@test $* != test || $(BIN)/python -m pip install --quiet --editable '.[hnswlib]' >/dev/null 2>&1 || \
		echo "hnswlib cannot be built here (it needs a C++ compiler): the tests that compare with it will be skipped"
	@touch $@

# Kernels are compiled once, before tests run in parallel.
.venv/warm: $(wildcard index/vecdb_index/*/*.py) | .venv/test
	@echo "compiling kernels"
	@$(BIN)/python -m vecdb_index.kernels
	@touch $@
