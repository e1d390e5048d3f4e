"""trl's SFT trainer with a weight for every token's loss.

    loss of an optimiser step = sum of w_i * ce_i / sum of w_i    over all tokens i of its examples

whatever the step is divided into: forward passes, devices.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling


class WeightedCollator(DataCollatorForLanguageModeling):
    """Right-padded `input_ids`, `labels`, `attention_mask` and `weights`, each [B, T]; padding weighs nothing."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        weights = torch.zeros(batch["input_ids"].shape)
        for row, example in enumerate(examples):
            weights[row, : len(example["weights"])] = torch.tensor(example["weights"])
        return batch | {"weights": weights}


class WeightedTrainer(SFTTrainer):
    """SFTTrainer on examples with a `weights` column beside `input_ids` and `labels`."""

    loss_is_scaled_for_ga = True  # the loss of every forward pass is a share of the whole step's

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """The sum of the weights of an optimiser step, over all its forward passes and devices."""
        total = torch.stack([batch["weights"][:, 1:].sum() for batch in batch_samples]).sum()
        return self.accelerator.gather(total.to(device)).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        """This forward pass's share of the step's loss. The gradients of devices are averaged, hence the factor."""
        weights = inputs.pop("weights")[:, 1:]
        log_probs = model(**inputs, use_cache=False, fused_lm_head=True).log_probs  # [B, T-1], 0 where unlabelled
        return -(log_probs * weights).sum() / num_items_in_batch * self.accelerator.num_processes
