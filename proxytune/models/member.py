"""One model of a family, in one role, and what it has read. Shapes: B rows, L positions read, t new, K kept, V tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

ADAPTERS_OFF = "<off>"
"""The adapter state of a member that uses a shared PEFT module without any of its adapters."""


class Reading:
    """What one member has read of a batch of rows: its cache, and which positions are real (1) or padding (0)."""

    def __init__(self, cache: Cache, rows: int, device: torch.device | str = "cpu") -> None:
        self.cache = cache
        self.mask = torch.zeros(rows, 0, dtype=torch.long, device=device)

    def extend(self, mask: Tensor) -> Tensor:
        """Note `mask` [B, t] as read; returns the position ids [B, t] of the new tokens."""
        self.mask = torch.cat([self.mask, mask], dim=1)
        return (self.mask.cumsum(dim=1) - 1).clamp(min=0)[:, -mask.shape[1] :]

    def select(self, rows: Tensor) -> None:
        """Keep, drop, reorder or repeat rows: afterwards row i is what row `rows[i]` was."""
        self.mask = self.mask[rows]
        self.cache.batch_select_indices(rows)


@dataclass(frozen=True)
class Member:
    """A role, a module (maybe shared with other roles), an adapter state and a prompt of its own."""

    role: str
    model: PreTrainedModel
    """The transformers model; a `PeftModel` when an adapter is switched per role."""
    vocab_size: int
    """V: ids the tokenizer knows. Logits beyond are padding rows of the head and are cut off."""
    adapter: str | None = None
    """None: the module as it is; an adapter's name; or ADAPTERS_OFF."""
    render: Callable[[str], str] | None = None
    """Turns the plain prompt into this member's own (a chat template, say); None: it reads the plain prompt."""
    identity: str = ""
    """What determines this member's answers: revision or file hashes, adapter, prompt format."""

    @property
    def device(self) -> torch.device:
        return self.model.device

    def start(self, rows: int) -> Reading:
        """An empty reading for a batch of rows."""
        return Reading(DynamicCache(config=self.model.config), rows, self.device)

    @torch.inference_mode()
    def read(self, reading: Reading, tokens: Tensor, mask: Tensor | None = None, keep: int = 1) -> Tensor:
        """Read `tokens` [B, t] (`mask` [B, t]: 1 = real); returns the logits of the last `keep` positions, [B, K, V]."""
        mask = torch.ones_like(tokens) if mask is None else mask
        positions = reading.extend(mask)
        with self.active():
            output = self.model(
                input_ids=tokens,
                attention_mask=reading.mask,
                position_ids=positions,
                past_key_values=reading.cache,
                use_cache=True,
                logits_to_keep=keep,
            )
        return output.logits[..., : self.vocab_size]

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Puts the shared module into this member's adapter state."""
        if self.adapter is None:
            yield
        elif self.adapter == ADAPTERS_OFF:
            with self.model.disable_adapter():
                yield
        else:
            # Without inference_mode the switch would turn gradients on again.
            self.model.set_adapter(self.adapter, inference_mode=True)
            yield
