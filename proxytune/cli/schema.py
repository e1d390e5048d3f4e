"""The configuration of `proxytune run`: names, types and ranges, checked before anything loads."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue
from pydantic import ConfigDict, Field

from proxytune import validation
from proxytune.errors import UserError, unknown_name
from proxytune.execution import Isolation
from proxytune.experiment.answers.tracing import NO_TRACES
from proxytune.experiment.arm_spec import ArmSpec
from proxytune.validation import FilePath, Strict


class TaskConfig(Strict):
    """`conf/task`."""

    names: list[str] = Field(min_length=1)
    """a list of at least one task name"""
    style: str | None = None
    """liu2024, fan2024 or lm_eval: whose prompts and metrics; null: the names stand for themselves"""
    data_dir: FilePath | None = None
    """a folder of JSON-lines files; null: the model family's own data, or the hub"""
    classifier: str | None = None
    """a sequence classifier by name or folder, for tasks that need one (toxigen); null: the published one"""
    toxic_label: str | None = None
    """the classifier's label that means toxic, by name or number; null: the published one's"""
    judge_true: str | None = None
    """a model that says whether an answer is true (truthfulqa_open), by name or folder, or at judge_api"""
    judge_informative: str | None = None
    """a model that says whether an answer is informative (truthfulqa_open), by name or folder, or at judge_api"""
    judge_label: str | None = None
    """a label that means yes, by name or number, of judges that are sequence classifiers; null: 1"""
    judge: str | None = None
    """a chat model at judge_api, which compares answers with the reference's (alpacafarm)"""
    judge_api: str | None = None
    """the address of an OpenAI-compatible endpoint, whose key comes from the environment"""
    verdicts: FilePath | None = None
    """a JSON-lines file of the judge's verdicts (alpacafarm): those that it has are not requested again"""


class EngineConfig(Strict):
    """`conf/engine`. Other engines have keys of their own, which are checked with their `_target_`."""

    model_config = ConfigDict(extra="allow")

    target: str = Field(alias="_target_")
    """an engine's class"""
    batch_size: int | None = Field(None, ge=1)
    """an integer from 1 (requests worked on together), or null for the engine's own choice"""
    speculate: Literal["auto", "off", False] | Annotated[int, Field(ge=0, le=64)] = "auto"
    """auto, off, or an integer from 0 to 64: the tokens of a draft, for engine=hf"""


class RunConfig(Strict):
    """`conf/run.yaml` with its groups; every field is a key of the command line."""

    models: dict[str, Any]
    """a file of conf/models, or a mapping with _target_"""
    task: TaskConfig
    """a file of conf/task, or a mapping with names and data_dir"""
    arms: dict[str, ArmSpec] = Field(min_length=1)
    """a mapping from at least one arm's name to what it is (conf/arms)"""
    engine: EngineConfig
    """a file of conf/engine, or a mapping with _target_"""
    logger: dict[str, Any] | None
    """a file of conf/logger, or a mapping with _target_, or null: no dashboard"""
    miniature: dict[str, Any] | None = None
    """a file of conf/miniature; has an effect with models=miniature only"""
    seed: int = Field(ge=0)
    """an integer from 0"""
    limit: int | None = Field(ge=1)
    """an integer from 1 (the first items of each task only), or null for all items"""
    pilot: int | None = Field(ge=2)
    """an integer from 2 (items to try first, to see whether the arms help), or null for no pilot"""
    num_fewshot: int | None = Field(ge=0)
    """an integer from 0 (examples in each prompt), or null for each task's own number"""
    only: list[str] | None = Field(min_length=1)
    """a list of at least one arm's name, or null for all arms"""
    execute: bool
    """true or false: whether tasks may run code that models write, as HumanEval and MBPP do"""
    isolation: Isolation
    """bubblewrap or none: what keeps that code from everything else; none runs it with your own rights"""
    trace: Literal["none", "summary", "full"]
    """none, summary or full: what is kept of each generated token, in traces/<task>.parquet"""
    trace_items: int | None = Field(ge=1)
    """an integer from 1 (the first items of each task are traced), or null for all items"""
    trace_missing: Literal["recompute", "report"]
    """recompute or report: what becomes of stored answers without their trace"""
    tags: list[str]
    """a list of words with which `proxytune runs list tag=...` finds the run"""
    note: str | None
    """a text that is kept with the run, or null"""
    headline: str | None = None
    """an arm's name, or null for the arm that a sweep changes, else the best fused one: its score is a job's number"""
    output: FilePath
    """a folder for the results; a sweep makes one folder per job in it"""
    store: FilePath | None
    """a file of finished answers, which a later run reads; null: keep none"""
    report: bool
    """true or false: whether report.html is written beside the results"""
    allow_targets: list[str]
    """a list of packages besides proxytune that _target_ may name"""

    @property
    def execution(self) -> Isolation | None:
        """The isolation in which generated code runs; None: it must not run."""
        return self.isolation if self.execute else None


def check(values: Mapping[str, Any]) -> RunConfig:
    """The resolved configuration with every key, type and range checked; raises UserError for the first fault."""
    checked = validation.check(RunConfig, values)
    _check_together(checked)
    return checked


def plain_values(config: DictConfig, without: Collection[str] = ()) -> dict[str, Any]:
    """The configuration as plain values, interpolations replaced; raises UserError for a value that is missing."""
    try:
        return {str(key): _plain(config[key]) for key in config if key not in without}
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} has no value yet: give {error.full_key}=...") from error
    except InterpolationResolutionError as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error


def _plain(value: Any) -> Any:
    """A part stays where it stands, so that it can refer to others, those left out too."""
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
    return value


def _check_together(config: RunConfig) -> None:
    """Raises UserError for values that others make wrong or useless."""
    for name in config.only or ():
        if name not in config.arms:
            raise unknown_name("arm in only", name, config.arms)
    for package in config.allow_targets:
        if package.partition(".")[0] in sys.stdlib_module_names:
            raise UserError(f"allow_targets={package} is not allowed: name a package of your own, not Python's library")
    if config.trace == "none" and (config.trace_items, config.trace_missing) != (NO_TRACES.items, NO_TRACES.missing):
        raise UserError(
            "trace_items and trace_missing have no effect with trace=none: leave them out, or give trace=full"
        )
    if config.pilot is not None and config.limit is not None and config.pilot >= config.limit:
        raise UserError(f"pilot={config.pilot} is not below limit={config.limit}: ask fewer items first")
    if config.isolation != "bubblewrap" and not config.execute:
        raise UserError(f"isolation={config.isolation} has no effect without execute=true: leave it out, or give both")
    if config.miniature is not None and str(config.models.get("_target_")).startswith("proxytune.models."):
        raise UserError("miniature has no effect on these models: remove its keys, or give models=miniature")
