"""trl's SFT trainer with a weight for every token's loss, and checkpoints that are complete or absent.

    loss of an optimiser step = sum of w_i * ce_i / sum of w_i    over all tokens i of its examples

whatever the step is divided into: forward passes, devices.
"""

from __future__ import annotations

import ctypes
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel as unwrap_model
from datasets import Dataset, concatenate_datasets
from peft import LoraConfig
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from proxytune.compat.transformers import is_spread
from proxytune.compat.trl import fused_log_probs
from proxytune.console import Report
from proxytune.errors import UserError
from proxytune.training import folder as files
from proxytune.training.examples import FILLER, StepSampler, WeightedCollator
from proxytune.training.recipe import Tuning


def plain_log_probs(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """What `fused_log_probs` returns, from the model's own head, which only sees the labelled positions.

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


class ReturnFreedMemory(TrainerCallback):
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
            self.add_callback(ReturnFreedMemory)
        self.folder = Path(str(self.args.output_dir))
        self.report: Report = lambda *_: None
        self._began = time.perf_counter()
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
        if "loss" in logs:
            self.report(self.folder.name, self.state.global_step, self.state.max_steps, f"loss {logs['loss']:.3f}")

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


def make_trainer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, folder: Path, tuning: Tuning
) -> WeightedTrainer:
    """A trainer of `model` on encoded examples (`proxytune.training.examples.encode`), which writes into `folder`.

    Raises UserError: several GPUs for one process, a batch that cannot be divided among the devices, a model that
    cannot read packed examples.
    """
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    arguments = _arguments(tuning, folder)
    if arguments.n_gpu > 1 and not is_spread(model):
        raise UserError(
            f"{arguments.n_gpu} GPUs are visible to one process: start it with torchrun --nproc_per_node "
            f"{arguments.n_gpu} -m proxytune train ..., or let it see one (CUDA_VISIBLE_DEVICES=0)"
        )
    trainer = WeightedTrainer(
        model=model,
        args=arguments,
        data_collator=WeightedCollator(tokenizer.pad_token_id, padding_free=tuning.packing),
        train_dataset=concatenate_datasets([dataset, Dataset.from_list([FILLER])]),
        processing_class=tokenizer,
        peft_config=_adapter(tuning) if tuning.method == "lora" else None,
    )
    trainer.remove_callback(PrinterCallback)
    if tuning.packing and not trainer.is_fsdp_enabled:  # whose weights are put in their places later
        with torch.autocast(arguments.device.type, torch.bfloat16, enabled=tuning.bf16):
            _check_packing(model.eval())
    return trainer


def _adapter(tuning: Tuning) -> LoraConfig:
    return LoraConfig(
        r=tuning.lora_rank,
        lora_alpha=tuning.lora_alpha,
        lora_dropout=tuning.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def _check_packing(model: PreTrainedModel) -> None:
    """Raises UserError if what `model` says of an example depends on the one that is packed before it."""
    ids = list(range(8))
    first, other, last = (
        {"input_ids": tokens, "labels": 8 * [-100], "weights": 8 * [0.0]} for tokens in (ids, ids[::-1], ids)
    )
    found = []
    with torch.no_grad():
        for before in (first, other):
            batch = WeightedCollator(0, padding_free=True)([before, last])
            inputs = {name: batch[name].to(model.device) for name in ("input_ids", "position_ids")}
            found.append(model(**inputs, use_cache=False).logits[0, 8:].float())
    # Experts of a mixture may be called with other numbers of tokens: equal but for rounding.
    if (found[0] - found[1]).abs().max() > 0.02 * found[0].abs().max():
        raise UserError("training.packing=true: the attention of this model mixes packed examples; set it to false")


def _arguments(tuning: Tuning, folder: Path) -> SFTConfig:
    arguments = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=tuning.epochs or 1,  # has no effect beside max_steps
        max_steps=-1 if tuning.max_steps is None else tuning.max_steps,
        per_device_train_batch_size=tuning.device_batch,
        learning_rate=tuning.learning_rate,
        weight_decay=tuning.weight_decay,
        warmup_steps=tuning.warmup_ratio,
        lr_scheduler_type="linear",
        max_length=tuning.max_length,
        bf16=tuning.bf16,
        use_cpu=not torch.cuda.is_available(),  # without it, bf16 is refused there
        gradient_checkpointing=tuning.gradient_checkpointing,
        seed=tuning.seed,
        logging_steps=1,
        save_strategy="no" if tuning.checkpoint_steps is None else "steps",
        save_steps=tuning.checkpoint_steps or 1,
        report_to="none",
        disable_tqdm=True,  # `report` shows how far it is
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
    )
    arguments.gradient_accumulation_steps = tuning.accumulation(arguments.world_size)
    return arguments
