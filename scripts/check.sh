#!/usr/bin/env bash
# Linters, type checker and tests; every check runs, and the exit status says whether all of them passed.
# Each test file has a process of its own, two at a time: some libraries reopen standard output for good.
cd "$(dirname "$0")/.." || exit
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1

status=0
check() { echo "+ $*"; "$@" || status=1; }
check ruff check .
check mypy
[ $status -eq 0 ] || echo "a linter or the type checker failed: see above"
echo "+ pytest, file by file"
printf '%s\n' tests/test_*.py | xargs -P 2 -n 1 pytest -q "$@" || status=1
exit $status
