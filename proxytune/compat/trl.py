"""trl: the collator of its SFT trainer, and the head that it puts on models. Needs the extra proxytune[train]."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from proxytune.compat import Name

NAMES = (
    Name("trl.trainer.sft_trainer", "DataCollatorForLanguageModeling", "padded and padding-free batches"),
    Name("trl.trainer.sft_trainer", "add_fused_lm_head", "the trainer gives every model a head that needs no logits"),
    Name("trl.trainer.utils:FusedCausalLMOutput", "log_probs", "what that head returns"),
)

SFTCollator = DataCollatorForLanguageModeling


def fused_log_probs(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """log p of every labelled token, 0 elsewhere: [B, T-1]. trl's head, which holds no logits of a whole batch."""
    output: Any = model(**inputs, use_cache=False, fused_lm_head=True)
    return output.log_probs
