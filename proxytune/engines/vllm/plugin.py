"""What vLLM calls in each of its processes (entry point group `vllm.general_plugins`)."""

from __future__ import annotations

from proxytune.engines.vllm.settings import ARCHITECTURE


def register() -> None:
    """Makes the fused model known to vLLM; may be called any number of times."""
    from vllm import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, f"proxytune.engines.vllm.model:{ARCHITECTURE}")
