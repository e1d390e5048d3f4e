"""Experiments: family x arms x tasks -> records, with an answer store and the statistics of the gap closed."""

from proxytune.experiment.runner import run

__all__ = ["run"]
