"""Tuning: trl and peft for real models (`sft`), a compact loop for models that train in seconds (`loop`)."""

from proxytune.training.sft import Tuning, tune

__all__ = ["Tuning", "tune"]
