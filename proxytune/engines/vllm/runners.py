"""How the fused model learns which requests a batch holds, from either of vLLM's model runners.

V2 has a hook for it: the model's own state class. V1 only tells logits processors which requests come and go, so there
we register one that leaves the logits as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from proxytune.engines.vllm.rows import COLUMNS, Rows, columns
from proxytune.engines.vllm.settings import Asked, FusedSettings, asked

_ROWS: dict[str, Rows] = {}
"""The rows of each engine in this process, by vLLM's name of the engine."""


def rows_of(config: VllmConfig) -> Rows:
    """The one object that the runner's side and the model's side of an engine share."""
    if config.instance_id not in _ROWS:
        _ROWS[config.instance_id] = Rows(FusedSettings.of(config).widest)
    return _ROWS[config.instance_id]


class V1Rows(LogitsProcessor):
    """Follows which request is in which slot of the V1 runner's batch."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.settings = FusedSettings.of(vllm_config)
        self.rows = rows_of(vllm_config)

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.rows.asked, batch_update, self._asked)

    def _asked(self, params: SamplingParams, *_: Any) -> Asked:
        return asked(self.settings, params.extra_args)

    def apply(self, logits: Tensor) -> Tensor:
        return logits

    def is_argmax_invariant(self) -> bool:
        return True

    @staticmethod
    def columns(positions: Tensor) -> Tensor:
        """[n, COLUMNS] of a batch with `positions` [n]; of nobody in dry runs, which have no attention metadata."""
        metadata = get_forward_context().attn_metadata
        slots = torch.full_like(positions, -1)
        if isinstance(metadata, dict):
            starts = next(iter(metadata.values())).query_start_loc.to(positions)
            slots[: starts[-1]] = torch.repeat_interleave(starts.diff())
        return columns(slots, positions)


class WorkerExtension:
    """What an engine asks its workers for (vLLM's `worker_extension_cls`)."""

    vllm_config: VllmConfig

    def take_weights(self) -> dict[str, list[tuple[int, list[float] | None]]]:
        """`Rows.take`, as plain data."""
        return {name: list(weights.items()) for name, weights in rows_of(self.vllm_config).take().items()}


class V2State(DefaultModelState):
    """Follows which request is in which slot of the V2 runner; gives `forward` the columns."""

    def __init__(self, vllm_config: VllmConfig, model: nn.Module, encoder_cache: Any, device: torch.device) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        self.settings = FusedSettings.of(vllm_config)
        self.rows = rows_of(vllm_config)
        self.slots = torch.full((self.max_num_tokens,), -1, device=device)
        # One buffer for good: CUDA graphs read it where it was when they were recorded.
        self.columns = torch.zeros(self.max_num_tokens, COLUMNS, device=device, dtype=self.dtype)

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        super().add_request(req_index, new_req_data)
        self.rows.asked[req_index] = asked(self.settings, new_req_data.sampling_params.extra_args)

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        inputs = super().prepare_inputs(input_batch, req_states)
        counts = np.diff(input_batch.query_start_loc_np[: input_batch.num_reqs + 1])
        slots = torch.from_numpy(np.repeat(input_batch.idx_mapping_np[: input_batch.num_reqs], counts))
        padded = input_batch.num_tokens_after_padding
        self.slots[:padded] = -1
        self.slots[: len(slots)].copy_(slots)
        self.columns[:padded] = columns(self.slots[:padded], input_batch.positions[:padded])
        return {**inputs, "columns": self.columns[:padded]}

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        self.columns[:num_tokens] = 0.0
        return {**super().prepare_dummy_inputs(num_reqs, num_tokens), "columns": self.columns[:num_tokens]}
