"""What transformers, torch and peft do with models, and what of it several models that only decode can do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel

from proxytune.compat.transformers import is_spread
from proxytune.errors import UserError
from proxytune.models.hf.config import FusedConfig

_UNTRAINED = (
    "a FusedCausalLM only decodes and has no gradients: tune a member (proxytune train, say) and fuse it again, or "
    "train what you put on its logits"
)


class FusedDecoder(PreTrainedModel, GenerationMixin):
    """A model of several models in `members`. What it cannot do is refused in one line."""

    config: FusedConfig
    members: torch.nn.ModuleList

    def loss(self, logits: Tensor, labels: Tensor, items: Tensor | int | None) -> torch.FloatTensor:
        """The mean cross-entropy of `labels` [B, t], or its sum over `items`. Its backward() says why it has none."""
        loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, num_items_in_batch=items)
        return _WithoutGradients.apply(loss.requires_grad_()) if torch.is_grad_enabled() else loss

    def train(self, mode: bool = True) -> Self:
        """The members stay in evaluation mode, without dropout, also as a part of a model that is trained."""
        return super().train(False)

    def _apply(self, fn: Callable, recurse: bool = True) -> Self:
        """Behind .to(), .half() and the like; quantised and spread members can't be moved."""
        for model in self.members:
            if is_spread(model) or getattr(model, "is_quantized", False):
                raise UserError(
                    "a quantised or spread member stays where it was loaded: choose device_map and dtype there"
                )
        return super()._apply(fn, recurse)

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to tie: each member has tied its own weights."""

    def get_output_embeddings(self) -> None:
        """None: the fused logits come from several heads."""

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        raise UserError("the members of a FusedCausalLM share one vocabulary: resize their embeddings before fusing")

    def add_adapter(self, *args: Any, **kwargs: Any) -> None:
        raise UserError("an adapter belongs to one member: put it on that model before fusing")

    def load_adapter(self, *args: Any, **kwargs: Any) -> Any:
        self.add_adapter()

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        raise UserError(
            "continuous batching (generate_batch) pages the cache of one model: use generate, or the engine of "
            "proxytune run, which fills a batch as rows end"
        )

    generate_batch = init_continuous_batching


class _WithoutGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise UserError(_UNTRAINED)
