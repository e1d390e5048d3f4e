"""The fused model as vLLM runs it: every member reads every token, and an arm fuses their logits row by row.

Shapes: n rows, H the sum of the members' hidden sizes, V the family's vocabulary, W that of the first member's head.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import groupby
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from vllm.config import CompilationMode, VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.sequence import IntermediateTensors

from proxytune.engines.vllm.adapters import add_lora, lora_weights, share_attention
from proxytune.engines.vllm.members import member_config
from proxytune.engines.vllm.rows import COLUMNS, Group
from proxytune.engines.vllm.runners import V1Rows, V2State, rows_of
from proxytune.engines.vllm.settings import FusedSettings, Place
from proxytune.fusion.rule import Fused


class FusedForCausalLM(nn.Module):
    """Members of any text architecture that vLLM knows, each with KV caches of its own.

    Members that differ in their LoRA adapters alone go through the same weights together.

    vLLM finds their attention layers by name and sizes KV blocks for all of them together.
    """

    # What vLLM's loader asks of a model class: no pickles, and no adapter that lies beside the weights.
    fall_back_to_pt_during_load = False
    allow_patterns_overrides: ClassVar[list[str]] = ["model*.safetensors"]

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.settings = FusedSettings.of(vllm_config)
        self.roles = {f"member_{i}": roles for i, roles in enumerate(self.settings.modules)}
        self.names = {role: name for name, roles in self.roles.items() for role in roles}
        self.sizes: dict[str, int] = {}
        self.secondary_weights: list[DefaultModelLoader.Source] = []
        self.width = vllm_config.model_config.get_vocab_size()
        for name, roles in self.roles.items():
            place = self.settings.members[roles[0]]
            module, size = _module(vllm_config, place, name, len(roles))
            self.add_module(name, module)
            self.sizes |= dict.fromkeys(roles, size)
            if name != "member_0":
                self.secondary_weights.append(
                    DefaultModelLoader.Source(
                        place.path,
                        place.revision,
                        prefix=f"{name}.",
                        fall_back_to_pt=False,
                        allow_patterns_overrides=self.allow_patterns_overrides,
                    )
                )
        self.rows = rows_of(vllm_config)

    def member(self, role: str) -> Any:
        """The module of `role`."""
        return self.get_submodule(self.names[role])

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """The first member's; vLLM asks for it, nothing here uses it."""
        return self.member(next(iter(self.names))).embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
        columns: Tensor | None = None,
    ) -> Tensor:
        """[n, H + COLUMNS]: the members' hidden states side by side, then whose row it is (`rows`)."""
        hidden = []
        for name, roles in self.roles.items():
            parts = len(roles)
            states = self.get_submodule(name)(*(x.repeat(parts) if parts > 1 else x for x in (input_ids, positions)))
            hidden += states.chunk(parts)
        if columns is None:
            columns = V1Rows.columns(positions)
        return torch.cat([*hidden, columns.to(hidden[0])], dim=-1)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Fused logits [n, W] in float32, -inf beyond V; None on ranks that gather none."""
        *states, columns = hidden_states.split((*self.sizes.values(), COLUMNS), dim=-1)
        groups, whose = self.rows.groups(columns)
        members: dict[str, tuple[Tensor, dict[int, int]]] = {}
        for role, state in zip(self.sizes, states, strict=True):
            needed = [row for group in groups if role in group.arm.roles for row in group.rows]
            if not needed:
                continue
            logits = self.member(role).compute_logits(_pick(state, needed))
            if logits is None:
                return None
            members[role] = logits[:, : self.settings.vocab_size], {row: i for i, row in enumerate(needed)}
        fused = hidden_states.new_full((len(hidden_states), self.width), -torch.inf, dtype=torch.float32)
        for group in groups:
            answer = _answer(group, members)
            rows = [whose[row] for row in group.rows]
            self.rows.keep(rows, answer)
            fused[group.rows, : self.settings.vocab_size] = self.rows.drawn(rows, answer.logits)
        return fused

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Each member loads its own; those of the first come without a prefix."""
        loaded = set()
        for name, own in groupby(weights, key=lambda item: self._member_of(item[0])):
            member: Any = self.get_submodule(name)
            inner = member.load_weights((key.removeprefix(f"{name}."), weight) for key, weight in own)
            loaded |= {f"{name}.{key}" for key in inner}
        self._load_adapters()
        return loaded

    def _load_adapters(self) -> None:
        for name, roles in self.roles.items():
            for part, role in enumerate(roles):
                place = self.settings.members[role]
                if place.adapter is not None:
                    add_lora(self.get_submodule(name), lora_weights(place), part, len(roles))

    def _member_of(self, weight: str) -> str:
        name = weight.partition(".")[0]
        return name if name in self.names.values() else "member_0"

    def get_model_state_cls(self) -> type[V2State]:
        """vLLM's hook: what the V2 runner keeps for each request."""
        return V2State


def _module(config: VllmConfig, place: Place, name: str, parts: int) -> tuple[nn.Module, int]:
    """The model at `place` and its hidden size; with `parts` > 1 it reads the rows of so many members, one after
    another, each with KV caches of its own."""
    own = member_config(config, place, name)
    if parts > 1:
        # Compiled code is made for at most as many rows as a batch has tokens.
        own.compilation_config = copy.copy(own.compilation_config)
        own.compilation_config.mode = CompilationMode.NONE
    module = initialize_model(own, prefix=name)
    if parts > 1:
        others = [initialize_model(own, prefix=f"{name}_part_{part}") for part in range(1, parts)]
        share_attention(module, others, Attention)
    return module, own.model_config.get_hidden_size()


def _answer(group: Group, members: dict[str, tuple[Tensor, dict[int, int]]]) -> Fused:
    logits = {}
    for role in group.arm.roles:
        own, places = members[role]
        logits[role] = _pick(own, [places[row] for row in group.rows])
    return group.arm.answer(logits)


def _pick(tensor: Tensor, rows: list[int]) -> Tensor:
    """Those rows; without a copy if they are all, in order."""
    return tensor if rows == list(range(len(tensor))) else tensor[rows]
