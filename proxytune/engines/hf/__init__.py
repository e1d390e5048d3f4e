"""The transformers engine."""

from proxytune.engines.hf.engine import HFEngine

__all__ = ["HFEngine"]
