#!/usr/bin/env bash
# The tests inside vLLM, on a machine that may not be made for them: where vLLM does not fit or cannot be installed, one
# line and status 0; where it is installed, the status of its tests. An environment of the same versions is used again.
cd "$(dirname "$0")/.." || exit
DISK=7 MEMORY=8 # GiB that the installation and the tests take
INSTALL=600 TESTS=900 # seconds after which they have failed

skip() { echo "the tests inside vLLM are skipped: $*"; exit 0; }

memory=$(awk '/^MemAvailable/ {print int($2 / 2^20)}' /proc/meminfo)
[ "$memory" -ge $MEMORY ] || skip "$memory GiB of memory are free, and they take $MEMORY"
if ! make -q .venv-vllm 2>/dev/null; then
  disk=$(df -Pk . | awk 'NR == 2 {print int($4 / 2^20)}')
  [ "$disk" -ge $DISK ] || skip "$disk GiB of disk are free, and vLLM takes $DISK"
  said=$(timeout $INSTALL make .venv-vllm 2>&1) || skip "vLLM could not be installed: $(grep -m 1 -i error <<<"$said")"
fi
timeout --kill-after=10 $TESTS make test-vllm
