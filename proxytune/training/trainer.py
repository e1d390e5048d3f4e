"""trl's SFT trainer with a weight for every token's loss, and checkpoints that are complete or absent.

    loss of an optimiser step = sum of w_i * ce_i / sum of w_i    over all tokens i of its examples

whatever the step is divided into: forward passes, devices.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel as unwrap_model
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler
from transformers import TrainerCallback
from trl import SFTTrainer

from proxytune.compat.trl import SFTCollator, fused_log_probs
from proxytune.training import folder as files

log = logging.getLogger(__name__)

MINUTE = 60.0


FILLER = {"input_ids": [0], "labels": [-100], "weights": [0.0]}
"""A row that teaches nothing: an epoch's last step is filled up with it, so that all devices have as many rows."""


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


def plain_log_probs(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """What `fused_log_probs` returns, from the model's own head, which is shown the labelled positions alone.

    Without Triton, trl's head scores every position, and once more in the backward pass: more time than all the rest
    of a small model's training step.
    """
    labels = inputs["labels"][:, 1:]
    labelled = labels != -100
    head = unwrap_model(model).get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, hidden: hidden[0][:, :-1][labelled][None])
    try:
        others = {name: values for name, values in inputs.items() if name != "labels"}
        logits = model(**others, use_cache=False).logits[0].float()  # [labelled, V]
    finally:
        hook.remove()
    losses = F.cross_entropy(logits, labels[labelled], reduction="none")
    return torch.zeros(labels.shape, device=labels.device).masked_scatter(labelled, -losses)


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
        # Asked for, because nobody tells the sampler of a training that goes on in several processes.
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


class MemoryGivenBack(TrainerCallback):
    """After each forward and backward pass, gives back to Linux what glibc keeps of freed tensors: their sizes differ
    from pass to pass, and what it keeps grows to many times what is needed."""

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
            trim(0)

    on_step_end = on_substep_end


class WeightedTrainer(SFTTrainer):
    """SFTTrainer on examples with a `weights` column beside `input_ids` and `labels`, the last of which is `FILLER`;
    writes into `args.output_dir`.

    Its log says after how many seconds and tokens each step was done, those before an interruption included.
    """

    # The loss of every forward pass is a share of the whole step's.
    loss_is_scaled_for_ga = True  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.device.type == "cpu":
            self.add_callback(MemoryGivenBack)
        self.folder = Path(str(self.args.output_dir))
        self._began = self._said = time.perf_counter()
        self._tokens = 0
        self._earlier: dict[str, Any] | None = None

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> StepSampler:
        assert isinstance(self.train_dataset, Dataset)
        lengths = [len(row) for row in self.train_dataset["input_ids"]][:-1]
        passes = self.args.train_batch_size * self.accelerator.num_processes
        batch = passes * self.args.gradient_accumulation_steps
        return StepSampler(lengths, batch, passes, self.args.seed, lambda: self.state.epoch)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """The sum of the weights of an optimiser step, over all its forward passes and devices."""
        parts = [torch.stack([b["weights"][:, 1:].sum(), b["tokens"]]) for b in batch_samples]
        weights, tokens = self.accelerator.gather(torch.stack(parts).sum(0).to(device)).view(-1, 2).sum(0)
        self._tokens += int(tokens)
        return weights

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """This forward pass's share of the step's loss. The gradients of devices are averaged, hence the factor."""
        weights, _ = inputs.pop("weights")[:, 1:], inputs.pop("tokens")
        assert num_items_in_batch is not None
        log_probs = (fused_log_probs if weights.is_cuda else plain_log_probs)(model, inputs)
        return -(log_probs * weights).sum() / num_items_in_batch * self.accelerator.num_processes

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._earlier is None:
            history = self.state.log_history
            self._earlier = history[-1] if history else {"seconds": 0.0, "tokens": 0, "step": 0}
        logs["seconds"] = self._earlier["seconds"] + time.perf_counter() - self._began
        logs["tokens"] = self._earlier["tokens"] + self._tokens
        super().log(logs, start_time)
        if self.args.disable_tqdm and "loss" in logs:
            self._say(logs["loss"])

    def _say(self, loss: float) -> None:
        """A line in the log every minute, for where there is no bar; the time left is at the pace so far."""
        now, done, steps = time.perf_counter(), self.state.global_step, self.state.max_steps
        if now - self._said < MINUTE:
            return
        assert self._earlier is not None
        pace = (now - self._began) / (done - self._earlier["step"])
        log.info("step %d of %d: loss %.3f, about %.0f min left", done, steps, loss, pace * (steps - done) / MINUTE)
        self._said = now

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The card is written at the end, by `tune`."""

    def _get_output_dir(self, trial: Any) -> str:
        """Where checkpoints are drafted."""
        return str(self.folder / files.UNFINISHED / files.DRAFT)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        draft = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        with files.writing(self.folder):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                files.keep(draft, self.folder)
        self.accelerator.wait_for_everyone()
