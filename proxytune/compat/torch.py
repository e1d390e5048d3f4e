"""torch: how often torch.compile compiles one function anew."""

from __future__ import annotations

import torch

from proxytune.compat import Name

NAMES = (
    Name("torch", "_dynamo", "the settings of torch.compile"),
    Name("torch._dynamo.config", "recompile_limit", "members and shapes that one function is compiled for"),
)
RECOMPILATIONS = 64
"""torch.compile gives up after 8 by default."""


def allow_recompilations() -> None:
    """Members of other shapes, numbers of rows and of new tokens may each be compiled."""
    torch._dynamo.config.recompile_limit = max(RECOMPILATIONS, torch._dynamo.config.recompile_limit)
