"""The built-in world: a corpus, five tasks and the models trained on them, made from a seed without a network."""

from proxytune.miniature.cache import build, data_folder, family
from proxytune.miniature.recipe import Recipe

__all__ = ["Recipe", "build", "data_folder", "family"]
