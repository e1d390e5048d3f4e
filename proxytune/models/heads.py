"""Output heads on a CPU. Shapes: n rows, H hidden, V tokens."""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

SMALLEST = 2**21
"""Number of weights of a head below which PyTorch's own product is at least as fast."""
FEW, VERY_FEW = 8, 4
"""The number of rows up to which W x' is faster than x W'; the second is for heads of more than `LARGE` weights."""
LARGE = 2**26


class Head(nn.Linear):
    """A linear layer whose product with a few rows in float32 is computed as (W x')', which is faster on a CPU.

    One row is computed as two equal rows. On one thread (49152 x 576) PyTorch's choice takes 10 ms for one row and 25
    for two; this product takes 6.4 ms in both cases (docs/performance.md). Logits differ by float32 rounding.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self._is_faster(input):
            return super().forward(input)
        rows = input.reshape(-1, input.shape[-1])
        product = (self.weight @ (rows if len(rows) > 1 else rows.repeat(2, 1)).T).T[: len(rows)]
        if self.bias is not None:
            product = product + self.bias
        return product.reshape(*input.shape[:-1], self.out_features)

    def _is_faster(self, input: Tensor) -> bool:
        weights = self.weight.numel()
        if weights < SMALLEST:
            return False
        rows = input.numel() // self.in_features
        few = 0 < rows <= (FEW if weights <= LARGE else VERY_FEW)
        plain = self.weight.dtype == input.dtype == torch.float32 and input.device.type == "cpu"
        return few and plain and not torch.is_grad_enabled()


def use_fast_head(model: PreTrainedModel | PeftModel) -> None:
    """Replaces the model's output layer by a `Head` that shares its weights, if it is a plain linear layer."""
    head = model.get_output_embeddings()
    if type(head) is nn.Linear:
        head.__class__ = Head
