"""One model of a family in one role, and its KV state. Shapes: B rows, L read, t new, K kept, V tokens."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar, cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from proxytune.compat.peft import switched
from proxytune.compat.transformers import GROUPED, attention_of, can_be_static, device_of, is_spread
from proxytune.errors import UserError
from proxytune.models.facts import ends_of
from proxytune.models.generation import ignored_settings
from proxytune.models.loading.adapters import ADAPTERS_OFF, check_state
from proxytune.models.positions import alibi, boundary, window


class KVState:
    """What one member has read of a batch of rows: its cache, and which positions are real and which padding."""

    def __init__(
        self,
        cache: Cache,
        rows: int,
        device: torch.device | str = "cpu",
        boundary: int | None = None,
        takes_masks: bool = False,
    ) -> None:
        self.cache = cache
        self.boundary = boundary
        """As in `positions.boundary`."""
        self.takes_masks = takes_masks
        """Whether the model accepts a boolean mask per row and new token, so that it need not build one itself."""
        self.rows = rows
        """B."""
        self.length = 0
        """L: positions of each row, real or padding."""
        self.device = torch.device(device)
        self.padding: Tensor | None = None
        """The mask [B, L]; None if no position is padding, because models then need no mask."""

    @property
    def mask(self) -> Tensor:
        """[B, L]: 1 = real, 0 = padding."""
        if self.padding is None:
            return torch.ones(self.rows, self.length, dtype=torch.long, device=self.device)
        return self.padding

    @mask.setter
    def mask(self, mask: Tensor) -> None:
        self.rows, self.length = mask.shape
        self.padding = unless_full(mask)

    def extend(self, tokens: int, mask: Tensor | None = None) -> Tensor:
        """Record `tokens` more positions as read, with `mask` [B, t] (None: all real); returns position ids [B, t]."""
        before, mask = self.length, None if mask is None else unless_full(mask)
        if self.padding is not None or mask is not None:
            new = torch.ones(self.rows, tokens, dtype=torch.long, device=self.device) if mask is None else mask
            self.padding = torch.cat([self.mask, new], dim=1)
        self.length += tokens
        if self.padding is None:
            return torch.arange(before, self.length, device=self.device).expand(self.rows, -1)
        return (self.padding.cumsum(dim=1) - 1).clamp(min=0)[:, before:]

    def attention_mask(self, tokens: int) -> Tensor | None:
        """The attention mask for a model that reads the last `tokens` recorded positions; None if it needs none."""
        if not self.takes_masks or tokens == self.length:
            return self.padding
        seen = None if self.padding is None else self.padding[:, None, None].bool()
        if tokens == 1:
            return seen
        causal = torch.ones(1, 1, tokens, self.length, dtype=torch.bool, device=self.device).tril(self.length - tokens)
        return causal if seen is None else causal & seen

    def select(self, rows: Tensor) -> None:
        """Keep, drop, reorder or repeat rows: afterwards row i is what row `rows[i]` was."""
        self.rows = len(rows)
        if self.padding is not None:
            self.padding = unless_full(self.padding[rows.to(self.device)])
        # Unlike `batch_select_indices`, this moves `rows` to each layer's device.
        self.cache.reorder_cache(cast(torch.LongTensor, rows))

    def crop(self, tokens: int) -> None:
        """Forget the last `tokens` positions."""
        self.length -= tokens
        if self.padding is not None:
            self.padding = unless_full(self.padding[:, : self.length])
        self.cache.crop(-tokens)


def unless_full(mask: Tensor) -> Tensor | None:
    """`mask`, or None if all positions are real. On a GPU the mask is kept: checking it would make the host wait."""
    return None if mask.device.type == "cpu" and bool(mask.all()) else mask


@dataclass(frozen=True)
class Member:
    """A role, a module (which other roles may share), an adapter state and optionally its own prompt."""

    role: str
    model: PreTrainedModel | PeftModel
    """The transformers model; a `PeftModel` when an adapter is switched per role."""
    vocab_size: int
    """V: the ids that the tokenizer knows. Logits beyond them come from padding rows of the head and are cut off."""
    adapter: str | None = None
    """None: the module as it is; an adapter's name; or ADAPTERS_OFF."""
    render: Callable[[str], str] | None = None
    """Turns the plain prompt into this member's own (such as a chat prompt); None: it reads the plain prompt."""
    identity: str = ""
    """What determines this member's answers: revision or file hashes, adapter, prompt format."""
    tokenizer: PreTrainedTokenizerBase | None = None
    """Its own tokenizer if it came with one, else the family's."""
    missing: tuple[int, ...] = ()
    """Ids of the family's vocabulary that this member does not know: their logits are -inf."""
    unknown: int = 0
    """The token it reads in place of a missing one."""

    remote: ClassVar[bool] = False
    """As in `MemberFacts`."""

    def __post_init__(self) -> None:
        try:
            check_state(self.model, self.adapter)
        except UserError as error:
            raise UserError(f"{self.role}: {error}") from error
        if "past_key_values" not in signature(self.module.forward).parameters:
            kind = self.model.config.model_type
            raise UserError(f"{self.role}: {kind} models can't be members: they keep what they read in no KV cache")

    @property
    def module(self) -> PreTrainedModel:
        """The transformers model itself, without adapters around it."""
        return cast(PreTrainedModel, self.model.get_base_model()) if isinstance(self.model, PeftModel) else self.model

    @property
    def config(self) -> PreTrainedConfig:
        return self.model.config

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end an answer of this member, by its generation config and by its own tokenizer."""
        config = getattr(self.model, "generation_config", None)
        return ends_of(getattr(config, "eos_token_id", None), self.tokenizer)

    @property
    def ignored(self) -> dict[str, Any]:
        """The settings of its generation config that evaluation does not apply."""
        return ignored_settings(getattr(self.model, "generation_config", None))

    @property
    def device(self) -> torch.device:
        return device_of(self.model)

    @property
    def window(self) -> int | None:
        """The number of positions that the model was made for; None if its config does not say."""
        return window(self.model.config)

    def start(self, rows: int) -> KVState:
        """An empty state for a batch of rows."""
        cache = DynamicCache(config=self.model.config)
        plain = all(type(layer) is DynamicLayer for layer in cache.layers)
        takes_masks = plain and self.takes_masks and attention_of(self.module) in ("sdpa", GROUPED)
        return KVState(cache, rows, self.device, boundary(self.model.config), takes_masks)

    @property
    def takes_masks(self) -> bool:
        """Whether the model accepts its own mask for each row and new token."""
        module = self.module
        known = can_be_static(module) and attention_of(module) in ("sdpa", GROUPED, "eager")
        return known and not alibi(module.config) and not is_spread(module)

    @torch.no_grad()
    def read(self, state: KVState, tokens: Tensor, mask: Tensor | None = None, keep: int = 1) -> Tensor:
        """Read `tokens` [B, t] (`mask` [B, t]: 1 = real); the logits of the last `keep` positions, [B, K, V].

        They have no gradients, but they may be edited in place and a head may be trained on them. Engines do neither
        and call this in inference mode.
        """
        tokens = self.known(tokens.to(state.device))
        positions = state.extend(tokens.shape[1], None if mask is None else mask.to(state.device))
        self._check_boundary(state, positions)
        with self.active():
            output = self.model(
                input_ids=tokens,
                attention_mask=state.attention_mask(tokens.shape[1]),
                position_ids=positions,
                past_key_values=state.cache,
                use_cache=True,
                logits_to_keep=keep,
            )
        return self.aligned(output.logits)

    def _check_boundary(self, state: KVState, positions: Tensor) -> None:
        """Raises UserError if the logits of a row would depend on the other rows."""
        end = state.boundary
        if end is not None and state.length > end and positions.max() >= end:
            kind = self.model.config.model_type
            raise UserError(
                f"{self.role} reads at most {end} tokens: beyond these the rotary factors of this {kind} (LongRoPE or "
                "dynamic NTK) depend on the longest row of a batch; shorten the prompt or the answer"
            )

    def known(self, tokens: Tensor) -> Tensor:
        """`tokens`, with those that this member does not know replaced by its unknown token."""
        if not self.missing:
            return tokens
        return tokens.masked_fill(torch.isin(tokens, tokens.new_tensor(self.missing)), self.unknown)

    def aligned(self, logits: Tensor) -> Tensor:
        """Logits over the family's vocabulary, without padding rows and with -inf for missing tokens."""
        logits = logits[..., : self.vocab_size]
        if not self.missing:
            return logits
        logits = torch.nn.functional.pad(logits, (0, self.vocab_size - logits.shape[-1]), value=-torch.inf)
        return logits.index_fill(-1, torch.tensor(self.missing, device=logits.device), -torch.inf)

    def active(self) -> AbstractContextManager[None]:
        """The shared module in this member's adapter state."""
        if self.adapter is None:
            return nullcontext()
        return switched(cast(PeftModel, self.model), None if self.adapter == ADAPTERS_OFF else self.adapter)
