"""The traces of a task's answers as one Parquet file, a row per token (docs/traces.md)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from transformers import PreTrainedTokenizerBase

from proxytune.atomic import atomic_write
from proxytune.engines.requests import Generated, Trace
from proxytune.experiment.answers.tracing import Tracing
from proxytune.experiment.lm_eval.arm_model import ItemAnswer
from proxytune.fusion.arm import Arm
from proxytune.record import TraceRecord

_TOP = pa.list_(pa.struct({"token": pa.int32(), "text": pa.string(), "p": pa.float32()}))
_NAMES = pa.dictionary(pa.int32(), pa.string())
Row = dict[str, Any]


def write_traces(
    path: Path,
    task: str,
    tracing: Tracing,
    answers: Mapping[str, Mapping[int, list[ItemAnswer]]],
    arms: Mapping[str, Arm],
    tokenizer: PreTrainedTokenizerBase,
) -> TraceRecord | None:
    """Writes the traces of a task's answers (by arm and item) to `path`; None if none were asked for.

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
    texts = _Texts(tokenizer)
    rows = [row for found in traced for row in _rows(*found, texts=texts, full=tracing.level == "full")]
    if rows:
        table = pa.Table.from_pylist([{"task": task, **row} for row in rows], _schema(rows))
        with atomic_write(path, binary=True) as file:
            pa.parquet.write_table(table, file, compression="zstd")
    return TraceRecord(
        level=tracing.level,
        items=len({item for _, item, _, _ in traced}),
        tokens=len(rows),
        without=len(generated) - len(traced),
    )


def _rows(
    arm: Arm, item: int, request: int, answer: Generated, *, texts: Mapping[int, str], full: bool
) -> Iterator[Row]:
    """A row per token."""
    trace = answer.trace
    assert isinstance(trace, Trace)
    for step, token in enumerate(answer.tokens):
        row = {"arm": arm.name, "item": item, "request": request, "step": step, "token": token, "text": texts[token]}
        row["p_fused"] = trace.p[step]
        if trace.p_base:
            row |= {"p_base": trace.p_base[step], "differs": trace.base_choice[step] != token}
        for role, weights in zip(arm.experts, answer.weights, strict=True):
            row[f"alpha_{role.removeprefix('expert:')}"] = weights[step]
        for name, tops in trace.top.items() if full else ():
            row[f"top_{name}"] = [{"token": one, "text": texts[one], "p": p} for one, p in tops[step]]
        yield row


def _schema(rows: Iterable[Row]) -> pa.Schema:
    """Weights and top tokens have the columns that some arm needs."""
    fields = {"task": _NAMES, "arm": _NAMES, "item": pa.int32(), "request": pa.int16(), "step": pa.int32()}
    fields |= {"token": pa.int32(), "text": pa.string()}
    fields |= {"p_fused": pa.float32(), "p_base": pa.float32(), "differs": pa.bool_()}
    names = dict.fromkeys(name for row in rows for name in row)
    fields |= {name: pa.float32() for name in names if name.startswith("alpha_")}
    return pa.schema(fields | {name: _TOP for name in names if name.startswith("top_")})


class _Texts(dict[int, str]):
    """A token's text as it stands within a text: its leading space is part of it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __missing__(self, token: int) -> str:
        # After itself: tokenizers of the SentencePiece family drop the space of the first token alone.
        alone, twice = (str(self.tokenizer.decode([token] * n)) for n in (1, 2))
        self[token] = twice[len(alone) :]
        return self[token]
