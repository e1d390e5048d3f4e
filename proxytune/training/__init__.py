"""Tuning: trl and peft for real models (`sft`), a compact loop for models that train in seconds (`loop`)."""

from proxytune.training.recipe import Recipe, Tuning

__all__ = ["Recipe", "Tuning"]
