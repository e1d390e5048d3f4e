"""The KV state of one member in a cache of fixed size: rows are added, grow and are removed without new tensors.

    slot 0   p p p a a . . .      Row i of a state is in slot `slots[i]`. A slot is filled from its first column, so
    slot 1   . . . . . . . .      there is no padding: a token's column is its position, and columns beyond the
    slot 2   p p p p p a . .      length of a row are masked. Lowering a row's length forgets its last tokens.

Because the tensors are fixed, a step can be recorded once as a CUDA graph and then replayed (`graphs.py`): a model's
many short kernels no longer wait for Python.

Shapes: B rows, S slots, t new tokens, C columns, H heads, D of one head, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from proxytune.compat.torch import allow_recompilations
from proxytune.models.compiled import blocks_of, by_layer
from proxytune.models.graphs import Graphs
from proxytune.models.member import KVState, Member

log = logging.getLogger(__name__)
PAD = 0
"""Fills positions without a token; its cache entry is overwritten before it can be attended to."""
COLUMNS = 128
"""The number of columns is a multiple of this; attention reads all columns."""


class SlotLayer(CacheLayerMixin):
    """Keys and values [S, H, C, D] of one layer; `update` writes into the columns of the current step."""

    def __init__(self, like: CacheLayerMixin, slots: int, columns: int) -> None:
        super().__init__()
        assert like.keys is not None and like.values is not None
        self.keys, self.values = (
            tensor.new_zeros(slots, tensor.shape[1], columns, tensor.shape[3]) for tensor in (like.keys, like.values)
        )
        self.is_initialized = True
        self.at: Tensor | None = None
        """[S, t]: the columns of the new tokens in the first S slots."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None and self.at is not None
        at = self.at[:, None, :, None]
        keys, values = self.keys[: len(at)], self.values[: len(at)]
        keys.scatter_(2, at.expand_as(key_states), key_states)
        values.scatter_(2, at.expand_as(value_states), value_states)
        return keys, values

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_max_length(), 0

    def get_seq_length(self) -> int:
        """Always 0: positions are given at every step."""
        return 0

    def get_max_length(self) -> int:
        assert self.keys is not None
        return self.keys.shape[2]


def fits(member: Member, state: KVState) -> bool:
    """Whether `state` can be moved into slots: it holds only keys and values by position."""
    return (
        all(type(layer) is DynamicLayer for layer in state.cache.layers)
        and member.takes_masks
        and state.boundary is None
        and not getattr(member.model, "is_quantized", False)
    )


class StaticState:
    """The rows that one member has read, in slots of at most `columns` tokens."""

    def __init__(self, member: Member, columns: int, graphs: bool, compile: bool = False) -> None:
        """`graphs`: record steps as CUDA graphs and replay them. `compile`: compile them by torch.compile first."""
        self.member = member
        self.compile = compile
        self.model: Callable[..., Any] = member.model
        self._logits: Callable[[Tensor, Tensor], Tensor] = self._read
        self.dtype, self.device = member.dtype, member.device
        self.columns = columns
        self.stream = torch.cuda.Stream(member.device) if graphs else None
        self.graphs = Graphs(self._forward, self.stream) if self.stream is not None else None
        self.layers: list[SlotLayer] = []
        self.cache = Cache(layers=cast(Any, self.layers))
        self.slots: list[int] = []
        """The slot of each row."""
        self.lengths: list[int] = []
        """The number of tokens in each row."""

    @property
    def rows(self) -> int:
        """B."""
        return len(self.slots)

    def clear(self) -> None:
        """Forget all rows; keep the tensors and the recorded steps."""
        self.slots, self.lengths = [], []

    def join(self, state: KVState) -> None:
        """Appends the rows of `state`, which are padded on the left."""
        lengths = state.mask.sum(dim=1)
        width = state.length
        if width > self.columns:
            raise ValueError(f"rows of {width} tokens do not fit into {self.columns} columns")
        taken = set(self.slots)
        self._reserve(self.rows + len(lengths), state.cache.layers)
        new = [slot for slot in range(self.size) if slot not in taken][: len(lengths)]
        at = torch.tensor(new, device=lengths.device)
        # Column c of a slot is column L - length + c of the padded row; columns beyond the length are masked.
        source = (width - lengths[:, None] + torch.arange(width, device=lengths.device)).clamp(max=width - 1)
        for layer, other in zip(self.layers, state.cache.layers, strict=True):
            for part in ("keys", "values"):
                rows = getattr(other, part)
                index = source[:, None, :, None].expand_as(rows)
                getattr(layer, part)[at, :, :width] = rows.gather(2, index)
        self.slots += new
        self.lengths += lengths.tolist()

    def select(self, rows: Tensor) -> None:
        """Keep, drop, reorder or repeat rows: afterwards row i is what row `rows[i]` was.

        Copies only repeated rows, and rows in high slots once few rows are left.
        """
        kept = rows.tolist()
        self._reserve(len(kept), self.layers)
        wanted, limit = [self.slots[row] for row in kept], bucket(len(kept))
        stay = {slot for slot in wanted if slot < limit}
        free = iter([slot for slot in range(limit) if slot not in stay])
        placed: list[int] = []
        copies: list[tuple[int, int]] = []
        for slot in wanted:
            if slot in stay:
                stay.remove(slot)
                placed.append(slot)
            else:
                placed.append(next(free))
                copies.append((slot, placed[-1]))
        self.slots, self.lengths = placed, [self.lengths[row] for row in kept]
        if copies:
            self._copy(copies)

    def forget(self, tokens: Sequence[int]) -> None:
        """Row i forgets its last `tokens[i]` tokens."""
        self.lengths = [length - few for length, few in zip(self.lengths, tokens, strict=True)]

    def read(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """The rows read `tokens` [B, t], padded on the right where `mask` [B, t] is 0; returns logits [B, t, V].

        Logits at padding are undefined. Each state reads on its own CUDA stream, so small models run in parallel with a
        large one; call `finish` on all states before using the logits.
        """
        counts = [tokens.shape[1]] * self.rows if mask is None else mask.sum(dim=1).tolist()
        if max(self.lengths) + tokens.shape[1] > self.columns:
            raise ValueError(f"{max(self.lengths)} + {tokens.shape[1]} tokens do not fit into {self.columns} columns")
        padded, lengths = self._placed(self.member.known(tokens.cpu()))
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        with self._aside():
            # Copy before the step starts: a copy from the host waits for all earlier work on its stream.
            slots = torch.tensor(self.slots, device=self.device)
            logits = self.step(padded.to(self.device), lengths.to(self.device))
            return self.member.aligned(logits[slots])

    def _placed(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [S, t] and lengths [S] of the slots, up to the last one in use."""
        size = bucket(max(self.slots) + 1)
        padded, lengths = [[PAD] * tokens.shape[1]] * size, [0] * size
        for slot, row, length in zip(self.slots, tokens.tolist(), self.lengths, strict=True):
            padded[slot], lengths[slot] = row, length
        return torch.tensor(padded), torch.tensor(lengths)

    def finish(self) -> None:
        """Makes the current stream wait until the state has finished reading."""
        if self.stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def _aside(self) -> AbstractContextManager[Any]:
        """Runs its body on the state's own stream, after all work issued so far."""
        if self.stream is None:
            return nullcontext()
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        return torch.cuda.stream(self.stream)

    def step(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The first S slots, of `lengths` [S], read `tokens` [S, t]: the head's logits, which later steps overwrite."""
        if self.graphs is None:
            return self._forward(tokens, lengths)
        try:
            return self.graphs(tokens, lengths)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            log.warning("%s can't be recorded as a CUDA graph and runs without: %s", self.member.role, error)
            self.graphs = None
            return self._forward(tokens, lengths)

    def _forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        with self.member.active():
            return self._logits(tokens, lengths)

    def _read(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        at = lengths[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        unseen = torch.arange(self.columns, device=tokens.device) > at[:, None, :, None]
        mask = torch.zeros_like(unseen, dtype=self.dtype).masked_fill_(unseen, torch.finfo(self.dtype).min)
        for layer in self.layers:
            layer.at = at
        return self.model(
            input_ids=tokens, attention_mask=mask, position_ids=at, past_key_values=self.cache, use_cache=True
        ).logits

    @property
    def size(self) -> int:
        """The number of slots."""
        keys = self.layers[0].keys if self.layers else None
        return 0 if keys is None else len(keys)

    def _reserve(self, rows: int, like: Sequence[Any]) -> None:
        """Makes slots for `rows`. If more are needed, the tensors are new and all steps are recorded again."""
        if rows <= self.size:
            return
        if self.compile and not self.layers:
            self._compile(len(like))
        old, size = list(self.layers), self.size
        self.layers[:] = [SlotLayer(layer, bucket(rows), self.columns) for layer in like]
        for layer, before in zip(self.layers, old, strict=False):
            for part in ("keys", "values"):
                getattr(layer, part)[:size] = getattr(before, part)
        if self.graphs is not None:
            self.graphs.clear()

    def _compile(self, layers: int) -> None:
        allow_recompilations()
        blocks = blocks_of(self.member.model, layers)
        if self.stream is not None and blocks is not None:
            self.model = by_layer(self.member.model, blocks)
        else:
            self._logits = torch.compile(self._read)

    def _copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies slots, given as pairs (from, to)."""
        source, target = torch.tensor(pairs, device=self.device).T
        seen = slice(max(self.lengths))
        for layer in self.layers:
            for tensor in (layer.keys, layer.values):
                assert tensor is not None
                tensor[target, :, seen] = tensor[source, :, seen]


def bucket(rows: int) -> int:
    """The smallest power of 2 that holds `rows`, to limit the number of recorded steps."""
    return 1 << max(0, rows - 1).bit_length()


class StaticStates:
    """The static states of an engine, kept between batches of requests so that recorded steps stay valid."""

    def __init__(self, ensemble: Mapping[str, Member], compile: bool) -> None:
        """By role; `compile` as in `StaticState`."""
        self.members = ensemble
        self.compile = compile
        self.columns = 0
        self.states: dict[str, StaticState] = {}
        self.unfit: set[str] = set()
        """Roles that do not fit a static state and have been reported in the log."""

    def make_room(self, tokens: int) -> None:
        """`columns` is the maximum number of tokens per row."""
        if tokens > self.columns:
            self.columns = -(-tokens // COLUMNS) * COLUMNS
            self.states.clear()

    def take(self, role: str, state: KVState) -> KVState | StaticState:
        """The static state of the role, holding only the rows of `state`; `state` itself if it does not fit."""
        member = self.members[role]
        if not fits(member, state):
            self._say(role)
            return state
        if role not in self.states:
            self.states[role] = StaticState(member, self.columns, member.device.type == "cuda", self.compile)
        self.states[role].clear()
        self.states[role].join(state)
        return self.states[role]

    def _say(self, role: str) -> None:
        if role not in self.unfit:
            self.unfit.add(role)
            log.info("%s is read with a dynamic cache, neither compiled nor as CUDA graphs (docs/performance.md)", role)
