"""Traces on disk: probabilities and weights of each generated token, as one Parquet file per task.

`pandas.read_parquet("outputs/RUN/traces/gsm8k.parquet")` has a row per token: task, arm, item, step (from 0), token,
text, p_fused and p_base (the probabilities of the token), differs (whether the base finds another token likelier) and
alpha_<expert>. p_base and differs are missing for a model alone. With trace=full, top_fused, top_base, top_<role>: the
five likeliest tokens, each with token, text and p.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from proxytune.errors import UserError

FOLDER = "traces"
TRACE_COLUMNS = ("task", "arm", "item", "step", "token", "text", "p_fused", "p_base", "differs")


def read_traces(run_folder: str | Path, task: str | None = None, *, top: bool = True) -> pd.DataFrame:
    """The traces of a run's tasks, or of one; empty without any. Without `top` the top-5 are left out.

    Raises UserError for a file that cannot be read.
    """
    paths = sorted((Path(run_folder) / FOLDER).glob(f"{task or '*'}.parquet"))
    parts = [_read(path, top) for path in paths]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(TRACE_COLUMNS))


def _read(path: Path, top: bool) -> pd.DataFrame:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        names = parquet.read_schema(path).names
        frame = pd.read_parquet(path, columns=[name for name in names if top or not name.startswith("top_")])
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    # Names are stored as categories, which do not join with those of other files.
    return frame.astype(dict.fromkeys(("task", "arm"), str))
