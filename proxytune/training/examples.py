"""Examples as the trainer reads them: encoded, in batches, in an order that pads little.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

from proxytune.compat.trl import SFTCollator
from proxytune.errors import UserError
from proxytune.training.loop import WeightedTokens, weigh
from proxytune.training.recipe import Examples

log = logging.getLogger(__name__)

FILLER = {"input_ids": [0], "labels": [-100], "weights": [0.0]}
"""A row without loss that fills up the last step of an epoch, so that all devices have as many rows."""
_LIMIT = "(training.max_length or the model's window, whichever is less)"


def encode(
    tokenizer: PreTrainedTokenizerBase, examples: Examples, max_length: int, prompt_loss: float = 0.0
) -> Dataset:
    """Token ids, labels and weights of each example that fits, ended by the end-of-sequence token.

    The weight of a token's loss is 1 on the answer and its end, and `prompt_loss` on the prompt; a label is the token,
    or −100 where the weight is 0.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end-of-sequence token, with which answers end: give it an eos_token")
    rows = [weigh(tokenizer, *example, prompt_loss) for example in examples]
    fitting = [row for row in rows if len(row.tokens) <= max_length]
    if not fitting:
        raise UserError(f"none of the {len(rows)} training examples fits into {max_length} tokens {_LIMIT}")
    if left_out := len(rows) - len(fitting):
        log.warning("left out %d of %d examples longer than %d tokens %s", left_out, len(rows), max_length, _LIMIT)
    return Dataset.from_list([_columns(row) for row in fitting])


def _columns(row: WeightedTokens) -> dict[str, list]:
    labels = row.tokens.where(row.weights != 0, -100)
    return {"input_ids": row.tokens.tolist(), "labels": labels.tolist(), "weights": row.weights.tolist()}


class WeightedCollator(SFTCollator):
    """Right-padded `input_ids`, `labels`, `attention_mask` and `weights`, each [B, T]; padding weighs nothing.

    With `padding_free` all examples stand in one row, [1, sum of T], and `position_ids` tell them apart. `tokens` is
    the number of tokens in the examples, fillers left out.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        rows = [torch.tensor(example["weights"]) for example in examples]
        if self.padding_free:
            weights = torch.cat(rows)[None]
            weights[batch["position_ids"] == 0] = 0.0  # nothing before it in its example tells of the first token
        else:
            weights = pad_sequence(rows, batch_first=True)
        tokens = torch.tensor(sum(len(row) for row in rows if row.any()))
        return batch | {"weights": weights, "tokens": tokens}


class StepSampler(Sampler[int]):
    """All examples in random order; of each `batch` of them, which make an optimiser step, the longest come first.

    A step is what it was, for its loss does not depend on what it is divided into; its forward passes pad less. After
    the last example comes the index behind it until there are whole passes for all devices: accelerate would repeat
    examples there.
    """

    def __init__(
        self, lengths: Sequence[int], batch: int, passes: int, seed: int, epochs_done: Callable[[], float]
    ) -> None:
        """`passes`: examples in one forward pass of all devices together."""
        # A function, because a training that is resumed in several processes does not tell its sampler.
        self.lengths, self.batch, self.seed, self.epochs_done = lengths, batch, seed, epochs_done
        self.fillers = -len(lengths) % passes

    def __len__(self) -> int:
        return len(self.lengths) + self.fillers

    def __iter__(self) -> Iterator[int]:
        random = torch.Generator().manual_seed(self.seed + int(self.epochs_done()))
        order = torch.randperm(len(self.lengths), generator=random).tolist()
        for start in range(0, len(order), self.batch):
            yield from sorted(order[start : start + self.batch], key=lambda i: -self.lengths[i])
        yield from [len(order)] * self.fillers
