"""Contrastive decoding: a large model against a small one, without experts. Shapes: V tokens, `...` any batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from proxytune.fusion.logits import compare
from proxytune.fusion.plausible import check_share, mask_rare
from proxytune.fusion.rule import Fused


@dataclass(frozen=True)
class Contrastive:
    """log p_base - log p_antiexpert among the tokens with p_base >= min_p * max p_base; every other token gets -inf.

    Li et al. 2023, section 3: their expert is our base, their amateur our antiexpert, their alpha our `min_p`. With
    `min_p` 1 only the base's most likely token remains; with 0 the logits are the plain difference.

    A token that the base masks with -inf stays masked. If the antiexpert masks a token, there is nothing to compare
    with and its difference counts as 0. A scored continuation with an implausible token has log-probability -inf.
    """

    min_p: float = 0.1
    """The minimum probability of a token, as a fraction of the base's largest; from 0 (keeps all tokens) to 1."""

    id: ClassVar[str] = "contrastive"
    formula: ClassVar[str] = "log p_base - log p_antiexpert where p_base >= min_p max p_base"
    paper: ClassVar[str] = "Li et al. 2023 (arXiv 2210.15097)"
    inputs: ClassVar[tuple[str, ...]] = ("base", "antiexpert")

    def __post_init__(self) -> None:
        check_share(self, "min_p", zero=True)

    def fuse(self, base: Tensor, antiexpert: Tensor) -> Fused:
        """The contrast [..., V] and empty weights [0, ...]. Raises ValueError if the shapes differ."""
        if base.ndim < 1 or antiexpert.shape != base.shape:
            shapes = f"{list(base.shape)} and {list(antiexpert.shape)}"
            raise ValueError(f"logits must be base [..., V] and antiexpert [..., V], got {shapes}")
        base = base.float()
        contrast, _ = compare(base.log_softmax(dim=-1), antiexpert.float().log_softmax(dim=-1))
        masked = mask_rare(base, self.min_p).isneginf()
        return Fused(contrast.masked_fill(masked, -torch.inf), base.new_empty((0, *base.shape[:-1])))
