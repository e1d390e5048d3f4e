"""What a run leaves behind: the schema of `results.json` and its reader.

A number that is undefined is None, and `undefined` says why. A field with a default may be absent from a file: it was
added later, or does not apply. A new field has a default, so that older files stay readable; `FORMAT` rises only when
the meaning of a field changes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError, field_validator, model_validator

from proxytune.errors import UserError

FORMAT = 1
FILE = "results.json"
ITEMS = "items"
"""The folder with a file per task of what each arm answered at each item."""
ERROR = "error.txt"
"""The file that says why a job of a sweep has no results, in the folder where they would be."""
ARM_KINDS = ("base", "antiexpert", "expert", "tuned", "fused")
"""Kinds of arms in the order of rows; arms of one kind keep that of the configuration."""
NO_FRACTIONS = {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "bits", "bleu", "chrf", "ter"}
"""Metrics that are not between 0 and 1; all others are, and are shown in percent."""


class _Schema(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, use_attribute_docstrings=True)


Interval = tuple[FiniteFloat, FiniteFloat]
"""Low and high end, at 95 %."""
Method = Literal["sample", "clustered", "wilson", "agresti-min", "exact"]
"""How a standard error was estimated: from the items, from their groups, or, without any variation in the sample, by
Wilson's interval (of a mean) or by Agresti and Min's (of a paired difference); exact: an arm minus itself."""
GapMethod = Literal["bootstrap", "agresti-min", "exact"]
"""How the interval of a gap was found: paired percentile bootstrap over items or groups, delta method with Agresti and
Min's error where every resample is alike; exact: the base or the tuned model itself."""


class Estimate(_Schema):
    """A mean over items, or a difference of two such means over the same items."""

    value: FiniteFloat | None
    """None without a valid item."""
    stderr: FiniteFloat | None = None
    """Standard error; None with fewer than two valid items."""
    stderr_method: Method | None = None
    n: int = 0
    """Valid items behind it (of a difference: items valid on both sides)."""
    n_invalid: int = 0
    """Items left out: the metric could not judge the answer, or the arm failed there."""


class Mean(Estimate):
    """A mean over items."""

    interval: Interval | None = None
    """Wilson's, where every item is 0 or 1 (right or wrong); grouped items count by their effective number."""


class RuleRecord(_Schema):
    """The rule of a fused arm."""

    id: str
    formula: str = ""
    paper: str = ""
    parameters: dict[str, Any] = {}


class Weights(_Schema):
    """The weights that an arm gave one expert, over all tokens of all answers; None where it gave none."""

    mean: FiniteFloat | None = None
    sd: FiniteFloat | None = None


class ArmRecord(Mean):
    """What one arm did on one task: `value` is the headline metric's mean."""

    gap_closed: FiniteFloat | None = None
    """(arm − base) / (tuned − base)."""
    gap_closed_ci: Interval | None = None
    gap_closed_ci_method: GapMethod | None = None
    relative_performance: FiniteFloat | None = None
    """arm / tuned."""
    failed_items: dict[str, str] = {}
    """Item -> error, where the arm answered others; they count as invalid, and `metrics` only has the headline."""
    undefined: dict[str, str] = {}
    """Field that is None -> why."""
    metrics: dict[str, FiniteFloat | None] = {}
    """Metric -> lm-eval's aggregate."""
    differences: dict[str, Estimate] = {}
    """"base", "expert" or "tuned" -> this arm minus that one, items paired."""
    roles: list[str] = []
    """The members behind the arm."""
    rule: RuleRecord | None = None
    """None for a single model."""
    tokens: int | None = None
    """Of all its answers, generated or scored; None in older records."""
    weights: dict[str, Weights] = {}
    """Expert -> the weights it was given; empty for a single model."""
    end_tokens: list[str] | None = None
    """The tokens that end its answers; None where it generates none."""
    ruled_out: int = 0
    """Items at which it gives some choices, not all, the log-probability -inf: less likely than every other."""
    left_out: int = 0
    """Items left out, and counted as invalid, because an endpoint gives none of their choices among its likeliest
    tokens."""

    @property
    def kind(self) -> str:
        """ "fused" for an arm with a rule, else the role of its model without the name."""
        return "fused" if self.rule or not self.roles else self.roles[0].partition(":")[0]


class DataRecord(_Schema):
    """Where the items of a task come from: a local file, or a data set of the hub."""

    file: str | None = None
    sha256: str | None = None
    dataset: str | None = None
    name: str | None = None
    """The configuration of `dataset`."""
    split: str | None = None
    read: int | None = None
    """Lines of the file or rows of the split: the items evaluated and all that were skipped."""
    skipped: dict[str, int] = {}
    """Why lines or rows were skipped -> how many."""
    groups: dict[str, int] = {}
    """Group (subject) -> its items evaluated, 0 included; empty where items are not grouped."""


class TraceRecord(_Schema):
    """What is in a task's file of traces."""

    level: Literal["summary", "full"]
    items: int
    """Items traced, the first of the task; 0 where answers are scored, not generated."""
    tokens: int
    without: int = 0
    """Answers to these items that came from the store without a trace."""


class TaskRecord(_Schema):
    """What every arm did on one task."""

    metric: str
    """The headline metric."""
    higher_is_better: bool
    expert: str | None = None
    """The expert and tuned model that belong to the task."""
    n: int
    """Items evaluated."""
    grouped_by: str | None = None
    """What makes items depend on one another: a column of the task ("subject"), or "prompt" where prompts repeat; None:
    items are independent."""
    n_groups: int | None = None
    data: DataRecord = DataRecord()
    n_truncated: int = 0
    """Items whose prompt lost its beginning."""
    missing: dict[str, str] = {}
    """Arm that is absent here -> why."""
    trace: TraceRecord | None = None
    """None if no traces were requested."""
    references: dict[str, str] = {}
    """"base", "expert" or "tuned" -> the arm that gaps and differences refer to; tuned is the task's own, or the only
    tuned model among the arms."""
    arms: dict[str, ArmRecord]

    @model_validator(mode="after")
    def _references_are_arms(self) -> TaskRecord:
        for reference, arm in self.references.items():
            if arm not in self.arms:
                raise ValueError(f"references.{reference} is {arm!r}, which is not one of the arms")
        return self

    @property
    def is_fraction(self) -> bool:
        """Whether the headline metric lies between 0 and 1."""
        return self.metric not in NO_FRACTIONS


class MemberRecord(_Schema):
    """A model in its role."""

    identity: str | None = None
    """Hash of what it answers by."""
    dtype: str = ""
    source: dict[str, Any] = {}
    """Where it was loaded from."""
    ignored: dict[str, Any] = {}
    """Settings of its generation_config that are not applied: answers are decoded as the task says."""


class Answers(_Schema):
    """How many answers of a task were computed, and how many came from the store."""

    computed: int = 0
    from_store: int = 0


class ArmCost(_Schema):
    """What the answers of an arm cost that were computed, not found in the store."""

    seconds: FiniteFloat
    """Of its models and its rule, as if it had not shared the models' passes with other arms (docs/figures.md)."""
    tokens: int
    """Generated or scored."""
    weights: int
    """Bytes of the weights of its models."""

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens / self.seconds if self.tokens and self.seconds else None


class Drafts(_Schema):
    """What came of drafted tokens, which are verified in one pass (docs/speculation.md)."""

    passes: int = 0
    """Rows read by the largest model, each as often as it was: where arms share a prefix, they share its row."""
    drafted: int = 0
    accepted: int = 0
    """Those that some arm took."""

    @property
    def acceptance(self) -> float | None:
        """None without drafts."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def tokens_per_pass(self) -> float | None:
        """1 without drafts; None where nothing was read but prompts."""
        return 1 + self.accepted / self.passes if self.passes else None


class Bandwidth(_Schema):
    """How fast models read their weights at the steps over answers, compared with the machine's memory bandwidth."""

    read: int = 0
    """Bytes: all weights at each step of each model, whatever the number of rows; prompts are left out."""
    seconds: FiniteFloat = 0.0
    """The time of these steps."""
    copied: FiniteFloat | None = None
    """Bytes per second that a copy in memory reads and writes, measured once; None where that failed."""


class TaskCosts(_Schema):
    """Where the models' time went."""

    arms: dict[str, ArmCost] = {}
    members: dict[str, FiniteFloat] = {}
    """Role -> seconds in which its model read; a model with several roles runs once, in the first of them."""
    drafts: Drafts = Drafts()
    """All 0 where answers were scored, or in older records."""
    bandwidth: Bandwidth = Bandwidth()
    """All 0 where nothing but prompts was read, or in older records."""


class EndpointUsage(_Schema):
    """What a model behind an endpoint was asked, including a first request to try it."""

    requests: int = 0
    """Repeated ones included."""
    prompt_tokens: int = 0
    """As the endpoint counts them; 0 where it does not say."""
    completion_tokens: int = 0


class Timings(_Schema):
    """The only part of a record that differs when a run is repeated."""

    total_seconds: float = 0.0
    load_seconds: dict[str, float] = {}
    """Task -> seconds; a task that uses the members already loaded is absent."""
    task_seconds: dict[str, float] = {}
    answers: dict[str, Answers] = {}
    batch_size: dict[str, int | None] = {}
    """Task -> what the engine ended with: less than it was given where memory ran out."""
    peak_memory: dict[str, int] = {}
    """Task -> the most bytes in use until its end: of the GPUs where there are any, or else of the process."""
    costs: dict[str, TaskCosts] = {}
    """Task -> costs of its arms; absent where the engine does not measure them, or computed no answer."""
    damaged_store_entries: int = 0
    endpoint: dict[str, EndpointUsage] = {}
    """Task -> what the base behind an endpoint was asked; absent if it was not."""
    endpoint_aborted: EndpointUsage = EndpointUsage()
    """What earlier runs asked it that failed or were stopped, and whose answers the store has."""
    judge: dict[str, EndpointUsage] = {}
    """Task -> what a judge behind an endpoint was asked; absent if it was not."""


class Provenance(_Schema):
    """How the record came about."""

    config: dict[str, Any] | None = None
    """The full resolved configuration."""
    seed: int = 0
    limit: int | None = None
    num_fewshot: int | None = None
    code: dict[str, str | None] = {}
    libraries: dict[str, str] = {}
    machine: dict[str, Any] = {}
    members: dict[str, MemberRecord] = {}
    """Role -> member."""
    timings: Timings = Timings()


class Record(_Schema):
    """What a run leaves behind, as written to `results.json`."""

    format: int = FORMAT
    """Files without it are the oldest of format 1."""
    tasks: dict[str, TaskRecord]
    """A task on which every arm failed is left out."""
    failed: dict[str, dict[str, str]] = {}
    """Task -> arm -> error in one line, where the arm failed at all items or at some."""
    provenance: Provenance = Provenance()

    @field_validator("format")
    @classmethod
    def _is_known(cls, value: int) -> int:
        if value != FORMAT:
            raise ValueError(f"{value} is not a format that this version of proxytune reads; it reads {FORMAT}")
        return value


def read_record(path: str | Path) -> Record:
    """The record of a run's folder, or of its `results.json`; raises UserError if it cannot be read."""
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    try:
        return Record.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: give the folder of a finished run, or its {FILE}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        raise UserError(f"{path} is not a {FILE} of proxytune run: {_fault(error)}") from error


def read_items(folder: Path, task: str) -> list[dict[str, Any]] | None:
    """The rows of a run's `items/<task>.jsonl`; None without such a file. Raises UserError if it cannot be read."""
    path = folder / ITEMS / f"{task}.jsonl"
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _fault(error: ValidationError) -> str:
    """The first fault, with where it is."""
    fault = error.errors(include_url=False)[0]
    return ": ".join(filter(None, [".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, ")]))
