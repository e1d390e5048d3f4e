# make run    install into .venv, then run the default experiment (pass overrides with ARGS="seed=1 limit=20")
# make test   install into .venv, then linters, type checker and tests
# make clean  remove .venv and caches

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ARGS   ?=
# Candidates in order of preference; PYTHON=... puts one of your own in front.
PYTHONS := $(PYTHON) python3 python3.13 python3.12 python3.11 python

.PHONY: run test install clean

run: $(STAMP)
	$(BIN)/proxytune run $(ARGS)

test: $(STAMP)
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check.sh

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@python=; for candidate in $(PYTHONS); do \
	  if $$candidate -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	  then python=$$candidate; break; fi; done; \
	if [ -z "$$python" ]; then \
	  echo "proxytune needs Python 3.11 or newer with the venv module; tried: $(PYTHONS)." \
	       "Name one with: make PYTHON=/path/to/python" >&2; exit 1; fi; \
	echo "Installing into $(VENV) with $$($$python --version)"; \
	$$python -m venv --clear $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
