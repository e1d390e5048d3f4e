"""The traces of a task's answers as one Parquet file, a row per token (docs/figures.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from transformers import PreTrainedTokenizerBase

from proxytune.atomic import atomic_write
from proxytune.engines.requests import Generated, TopTokens
from proxytune.experiment.answers.tracing import Tracing
from proxytune.experiment.lm_eval.arm_model import ItemAnswer
from proxytune.fusion.arm import Arm
from proxytune.record import TraceRecord

_TOP = pa.list_(pa.struct({"token": pa.int32(), "text": pa.string(), "p": pa.float32()}))
_NAMES = pa.dictionary(pa.int32(), pa.string())
_FIELDS = {
    **{"task": _NAMES, "arm": _NAMES, "item": pa.int32(), "request": pa.int16(), "step": pa.int32()},
    **{"token": pa.int32(), "text": pa.string(), "p_fused": pa.float32(), "p_base": pa.float32()},
    "differs": pa.bool_(),
}
Traced = tuple[Arm, int, int, Generated]
"""Arm, item, number of the request among the item's, and answer."""


def write_traces(
    path: Path,
    task: str,
    tracing: Tracing,
    answers: Mapping[str, Mapping[int, list[ItemAnswer]]],
    arms: Mapping[str, Arm],
    tokenizer: PreTrainedTokenizerBase,
) -> TraceRecord | None:
    """Writes the traces of a task's answers (by arm and item) to `path`; None if none were requested.

    A task whose answers are scored has none to write. Raises UserError if the file cannot be written.
    """
    if tracing.level == "none":
        return None
    items = tracing.first(next(iter(answers.values())))
    generated = [
        (arms[arm], item, number, one.answer)
        for arm, by_item in answers.items()
        for item in items
        for number, one in enumerate(by_item[item])
        if isinstance(one.answer, Generated)
    ]
    traced = [found for found in generated if found[3].trace is not None]
    tokens = sum(len(answer.tokens) for _, _, _, answer in traced)
    if tokens:
        table = _table(task, traced, _Texts(tokenizer), full=tracing.level == "full")
        with atomic_write(path, binary=True) as file:
            pa.parquet.write_table(table, file, compression="zstd")
    return TraceRecord(
        level=tracing.level,
        items=len({item for _, item, _, _ in traced}),
        tokens=tokens,
        without=len(generated) - len(traced),
    )


def _table(task: str, answers: Sequence[Traced], texts: Mapping[int, str], full: bool) -> pa.Table:
    """A row per token. Weights and top tokens have the columns that some arm needs, empty for the others."""
    parts = [_columns(task, *answer, texts, full) for answer in answers]
    fields = dict(_FIELDS)
    fields |= {name: pa.float32() for part in parts for name in part if name.startswith("alpha_")}
    fields |= {name: _TOP for part in parts for name in part if name.startswith("top_")}
    columns = {}
    for name, kind in fields.items():
        values = [value for part in parts for value in part.get(name) or [None] * len(part["token"])]
        columns[name] = _top_array(values, texts) if kind == _TOP else pa.array(values, kind)
    return pa.table(columns)


def _columns(
    task: str, arm: Arm, item: int, request: int, answer: Generated, texts: Mapping[int, str], full: bool
) -> dict[str, Sequence[Any]]:
    """The values of one answer's m tokens, by column; an absent or empty column has none."""
    trace, m = answer.trace, len(answer.tokens)
    assert trace is not None
    columns: dict[str, Sequence[Any]] = {"task": [task] * m, "arm": [arm.name] * m, "item": [item] * m}
    columns |= {"request": [request] * m, "step": range(m), "token": answer.tokens}
    columns |= {"text": [texts[token] for token in answer.tokens]}
    columns |= {"p_fused": trace.p, "p_base": trace.p_base, "differs": trace.differs}
    columns |= {
        f"alpha_{role.removeprefix('expert:')}": weights[:m]
        for role, weights in zip(arm.experts, answer.weights, strict=True)
    }
    return columns | ({f"top_{name}": tops for name, tops in trace.top.items()} if full else {})


def _top_array(values: Sequence[TopTokens | None], texts: Mapping[int, str]) -> pa.Array:
    """Lists of (token, text, p), null where there is none."""
    flat = [pair for tops in values for pair in tops or ()]
    offsets = [0, *accumulate(len(tops or ()) for tops in values)]
    tokens, p = [token for token, _ in flat], pa.array((p for _, p in flat), pa.float32())
    text = pa.array((texts[token] for token in tokens), pa.string())
    pairs = pa.StructArray.from_arrays([pa.array(tokens, pa.int32()), text, p], ["token", "text", "p"])
    empty = pa.array([tops is None for tops in values])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pairs, mask=empty)


class _Texts(dict[int, str]):
    """A token's text as it stands within a text: its leading space is part of it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __missing__(self, token: int) -> str:
        # After itself: tokenizers of the SentencePiece family drop the space of the first token alone.
        alone, twice = (str(self.tokenizer.decode([token] * n)) for n in (1, 2))
        self[token] = twice[len(alone) :]
        return self[token]
