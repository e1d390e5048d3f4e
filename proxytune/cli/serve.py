"""`proxytune serve`: the arms of a family as models of an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from pydantic import Field

from proxytune import validation
from proxytune.cli import build, schema
from proxytune.cli.application import Command
from proxytune.errors import UserError, unknown_name
from proxytune.experiment.arm_spec import ArmSpec, arm_specs
from proxytune.fusion.rule import inputs_of
from proxytune.validation import FilePath, Strict

FUSED = "fused"
"""The name of the arm that `fusion` gives."""


class ServeConfig(Strict):
    """`conf/serve.yaml`."""

    models: dict[str, Any]
    """a file of conf/models, or a mapping with _target_"""
    arms: dict[str, ArmSpec] = Field(min_length=1)
    """a mapping from at least one arm's name to what it is (conf/arms)"""
    fusion: dict[str, Any] | None = None
    """a file of conf/fusion, or a mapping with _target_: one more arm, `fused`, that comes first; null: none"""
    own: str | None = None
    """the name of the expert and tuned model that own, expert and tuned stand for; null: the only ones"""
    only: list[str] | None = Field(None, min_length=1)
    """a list of at least one arm's name, the first of which answers requests without a model; null: all arms"""
    host: str
    """an address of this machine; 127.0.0.1 only answers this machine"""
    port: int = Field(ge=1, le=65535)
    """an integer from 1 to 65535"""
    memory: float | None = Field(gt=0)
    """GiB for KV caches, or null for vLLM's own choice"""
    max_model_len: int | None = Field(ge=2)
    """an integer from 2 (tokens of a request, prompt and answer), or null: as long as every member reads"""
    tensor_parallel: int = Field(ge=1)
    """an integer from 1 (GPUs that share each member)"""
    quantization: str | None
    """how vLLM stores weights that are not quantised already, or null: as they are"""
    output: FilePath
    """a folder for the log"""
    allow_targets: list[str]
    """a list of packages besides proxytune that _target_ may name"""


def check(config: DictConfig) -> ServeConfig:
    """The settings, each arm with its rule built; raises UserError for what is wrong by itself."""
    values = schema.plain_values(config)
    settings = validation.check(ServeConfig, values)
    for key in ("models", "arms", "fusion"):
        build.check_targets(values.get(key), key, settings.allow_targets)
    return settings.model_copy(update={"arms": _chosen(build.arms(_specs(settings)), settings.only)})


def work(config: DictConfig, output_dir: Path) -> None:
    """Serves what `config` names until it is stopped."""
    settings = check(config)

    from proxytune.engines.vllm.installed import check_installed
    from proxytune.engines.vllm.server import serve
    from proxytune.experiment.arms import resolve
    from proxytune.models import FamilySpec, describe

    check_installed()
    family = FamilySpec.of(build.build(settings.models))
    arms = list(resolve(settings.arms, family, "proxytune serve", settings.own).present.values())
    roles = dict.fromkeys(role for arm in arms for role in arm.roles)
    engine = settings.model_dump(include={"memory", "max_model_len", "tensor_parallel", "quantization"})
    serve(describe(family, roles), family, arms, settings.host, settings.port, **engine)


def _specs(settings: ServeConfig) -> Mapping[str, ArmSpec]:
    """The arms, after the one that `fusion` gives. Raises UserError where its name is taken."""
    if settings.fusion is None:
        return settings.arms
    if FUSED in settings.arms:
        raise UserError(f"fusion is served as arm {FUSED!r}, but arms.{FUSED} is given too: leave one of them out")
    fused: dict[str, Any] = {"rule": settings.fusion}
    if "experts" in inputs_of(build.build(settings.fusion)):
        fused["experts"] = "own"
    return arm_specs({FUSED: fused, **settings.arms})


def _chosen(arms: Mapping[str, ArmSpec], only: Sequence[str] | None) -> dict[str, ArmSpec]:
    for name in only or ():
        if name not in arms:
            raise unknown_name("arm in only", name, arms)
    return {name: arms[name] for name in only or arms}


main = Command("serve", check, work).main
