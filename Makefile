# Everything a newcomer, a developer or CI does with this project. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help
.PHONY: help venv demo test test-postgres test-migrations test-ledger check format docs lock bench bench-size bench-bloat chaos clean

help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' Makefile

venv: ## Make .venv from the hash-pinned file; reuse a fresh one, renew a stale one
	@PYTHON="$(PYTHON)" sh .ci/venv

demo: venv ## Crawl a local site of generated photographs through the whole system
	@$(BIN)/pixtrawl demo

test: venv ## Run all tests on real PostgreSQL, Valkey, Celery workers and HTTP servers
	@$(BIN)/python -m pytest -n 4 --dist worksteal

test-postgres: venv ## Run all tests on another PostgreSQL (POSTGRES=/usr/lib/postgresql/15/bin)
	@TEST_POSTGRES_BIN="$(POSTGRES)" $(BIN)/python -m pytest -n 4 --dist worksteal

test-migrations: venv ## Migrate a million rows a table while others write them, and show how long they waited
	@TEST_MIGRATION_ROWS=1000000 $(BIN)/python -m pytest tests/migration/test_online_migrations.py -o log_cli=true

test-ledger: venv ## Run any order of operations on the ledger, a hundred times as long as `make test` does
	@TEST_LEDGER_RUNS=500 $(BIN)/python -m pytest tests/integration/test_ledger.py tests/integration/test_credits.py -k any_operations

check: venv ## Run ruff, mypy and the import arrows
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/unit/test_imports.py

format: venv ## Format the code
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix-only .

bench: venv ## Measure the rate beside the bare floor, img2dataset and Scrapy, and more (ARGS="--only fast --write")
	@$(BIN)/python -m benchmarks.bench $(ARGS)

bench-size: venv ## Measure every database path at a million rows (ARGS="--write")
	@$(BIN)/python -m benchmarks.size $(ARGS)

bench-bloat: venv ## Measure what 100,000 settles leave in the hot tables (ARGS="--settles 100000 --write")
	@$(BIN)/python -m benchmarks.bloat $(ARGS)

chaos: venv ## Break a whole system in every way and check that nothing was lost (ARGS="--minutes 60 --write")
	@$(BIN)/python -m chaos $(ARGS)

docs: venv ## Write docs/DATABASE_SCHEMA.md from the models
	@$(BIN)/python -m docs.database_schema

lock: ## Resolve pyproject.toml again into the hash-pinned files (needs uv)
	uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-header pyproject.toml -o requirements.txt
	uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-header pyproject.toml --group dev -c requirements.txt -o requirements-dev.txt

clean: ## Remove what was made here (not your PIXTRAWL_HOME)
	rm -rf $(VENV) .venv-bench .mypy_cache .ruff_cache .hypothesis build dist
