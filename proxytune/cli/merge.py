"""`proxytune merge`: several experts of a family as one small model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from proxytune.cli import build, family, schema
from proxytune.cli.application import Command
from proxytune.errors import UserError
from proxytune.validation import FilePath, Strict


class MergeConfig(Strict):
    """`conf/merge.yaml`."""

    models: dict[str, Any]
    """a file of conf/models"""
    method: Literal["task_arithmetic"]
    """task_arithmetic (for other methods merge the same folders with mergekit, https://github.com/arcee-ai/mergekit,
    and give its output as an expert's path)"""
    scale: float
    """a finite number, the multiple of the experts' changes"""
    experts: list[str]
    """a list of names of the family's experts"""
    output: FilePath
    """a folder for the merged model"""


def check(config: DictConfig) -> MergeConfig:
    """The settings; raises UserError for what is wrong by itself."""
    from proxytune.training.merging import check_experts

    settings = family.settings(MergeConfig, config, _merged)
    known = list(config.models.get("experts") or []) if family.describes_members(config) else settings.experts
    check_experts(settings.experts, known)
    build.check_targets(settings.models, "models")
    return settings


def work(config: DictConfig, output_dir: Path) -> None:
    """Merges what `config` names and says how to use it."""
    settings = check(config)

    from proxytune.console import loading_bars
    from proxytune.models import trained
    from proxytune.provenance import code_facts, library_versions
    from proxytune.training.merging import merge

    models = build.build(settings.models)
    with loading_bars():
        provenance = {"code": code_facts(), "libraries": library_versions()}
        card = merge(models, settings.experts, settings.scale, output_dir, settings.method, provenance)
    trained.remember(card["recipe"], output_dir, {"path": str(output_dir.resolve())})
    print(f"{settings.method} of {', '.join(settings.experts)}, scale {settings.scale}: {output_dir}")
    added = f"++models.experts.{settings.method}.path=trained:{card['recipe']}"
    print("for proxytune run:", *family.overrides(config, models), added)


def _merged(config: DictConfig) -> dict[str, Any]:
    """The family with only what is merged; the antiexpert stands in for the base, which a family needs."""
    if OmegaConf.select(config, "models.antiexpert") is None:
        raise UserError("models.antiexpert is missing: merging starts from it")
    models = family.only(config, "antiexpert")
    models["base"] = models["antiexpert"]
    experts = config.models.get("experts")
    if isinstance(experts, DictConfig):
        merged = OmegaConf.select(config, "experts")
        left_out = set(experts) - set(merged if OmegaConf.is_list(merged) else ())
        experts = schema.plain_values(experts, without=left_out)
    return models | {"experts": experts}


main = Command("merge", check, work).main
