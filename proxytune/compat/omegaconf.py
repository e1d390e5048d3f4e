"""omegaconf: a part of a configuration under another one, to whose keys it refers."""

from __future__ import annotations

from omegaconf import DictConfig

from proxytune.compat import Name

NAMES = (Name("omegaconf:DictConfig", "_set_parent", "a copied part can refer to the rest of its configuration"),)


def place_in(part: DictConfig, config: DictConfig) -> None:
    """Lets interpolations in `part` see the keys of `config`, which does not change."""
    part._set_parent(config)
