#!/usr/bin/env bash
# Linters, type checker and tests; every check runs, and the exit status says whether all of them passed.
cd "$(dirname "$0")/.." || exit
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1

status=0
check() { echo "+ $*"; "$@" || status=1; }
check ruff check .
check ruff format --check .
check mypy
[ $status -eq 0 ] || echo "a linter or the type checker failed: see above"
command -v chromium chromium-browser google-chrome >/dev/null ||
  echo "there is no Chromium: the tests of the report in a browser are skipped (Debian: apt install chromium)"
command -v bwrap >/dev/null ||
  echo "there is no bubblewrap: the tests of isolated code are skipped (Debian: apt install bubblewrap)"
check pytest -n 2 --dist worksteal "$@"
exit $status
