"""Every shipped configuration composes, passes the checks of the command line, and names parts that exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from proxytune.cli import build, schema
from proxytune.experiment.arm_spec import ArmSpec
from proxytune.folders import config_dir

CONF = config_dir()
GROUPS = ("models", "fusion", "arms", "task", "engine", "logger", "miniature", "experiment")
FILES = [path for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
EXPERIMENTS = [path for path in FILES if path.parent.name == "experiment"]


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("run", overrides=list(overrides))


def checked(config: DictConfig) -> schema.RunConfig:
    """What the command line checks before anything loads; values that a user must give are filled in."""
    values = schema.plain_values(_filled(config))
    settings = schema.check(values)
    for key, node in (("models", settings.models), ("engine", {**values["engine"], "_partial_": True})):
        build.check_targets(node, key)
    build.check_targets(values["arms"], "arms")
    build.arms(settings.arms)
    return settings


def _filled(config: DictConfig) -> DictConfig:
    """`config` with something in the place of every `???`."""
    try:
        OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = str(error.full_key)
        OmegaConf.update(config, key, ["a task"] if key == "task.names" else "given")
        return _filled(config)
    return config


def overrides_for(path: Path) -> list[str]:
    """The shortest command line that uses the file, with small choices for all else."""
    group, name = path.parent.name, path.stem
    if group == "experiment":
        return [f"experiment={name}"]
    chosen = {"models": "local", "task": "gsm8k"} | ({"models": "miniature"} if group == "miniature" else {})
    if group == "fusion":
        return [*(f"{key}={value}" for key, value in chosen.items()), f"+fusion@arms.new.rule={name}"]
    return [f"{key}={value}" for key, value in (chosen | {group: name}).items()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_file_composes_and_passes_the_checks(path: Path):
    checked(composed(*overrides_for(path)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_file_begins_with_a_command_that_uses_it(path: Path):
    command = _header_command(path)
    assert any(path.stem in word for word in command), f"no command for {path.stem} in the header of {path}"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_command_of_an_experiment_runs_it(path: Path):
    command = [word for word in _header_command(path) if not word.startswith("[")]
    rest = [word for word in command if not word.startswith("experiment=")]
    said = checked(composed(*(command or ["experiment=miniature"]), "output=here"))
    assert said == checked(composed(f"experiment={path.stem}", *rest, "output=here"))


def test_the_default_arms_are_those_of_the_papers():
    arms = composed("models=local", "task=gsm8k").arms
    assert list(arms) == [
        *("base", "expert", "tuned", "proxy", "static_0_5", "static_1_5"),
        *("dynamic_grid", "dynamic", "all_dynamic", "all_joint"),
    ]
    assert [arms[name].rule.weights for name in ("proxy", "static_0_5", "static_1_5")] == [1.0, 0.5, 1.5]
    assert [arms[name].rule.solver for name in ("dynamic_grid", "dynamic")] == ["grid", "exact"]


def test_the_miniature_has_ten_arms_multitask_arms_besides_and_a_tiny_size():
    full, tiny = composed("experiment=miniature"), composed("experiment=miniature", "miniature=tiny")
    assert len(full.arms) == 10
    assert full.arms.all_dynamic["except"] == ["multitask"]
    assert full.models.recipe.get("world") != tiny.models.recipe.world
    more = composed("experiment=miniature", "arms=multitask")
    assert {"each_expert", "tuned_multitask"} <= set(more.arms)
    assert more.arms.all_joint["except"] == ["multitask"]


def test_the_self_check_has_one_model_in_two_roles():
    config = composed("experiment=smollm2_selfcheck", "models.base.path=a.gguf", "models.experts.gsm8k.adapter=lora")
    family = build.build(schema.plain_values(config)["models"])
    assert family.base == family.antiexpert
    assert family.experts["gsm8k"].module == family.base.module


def test_the_keys_of_the_schema_are_those_of_the_configuration():
    groups_of_one_family = {"miniature"}
    assert set(schema.RunConfig.model_fields) - groups_of_one_family == set(composed("models=local", "task=gsm8k"))


def test_every_key_of_the_schema_says_what_it_may_be():
    for model in (schema.RunConfig, schema.TaskConfig, ArmSpec):
        assert all(field.description for field in model.model_fields.values())


def _header_command(path: Path) -> list[str]:
    """The words after `proxytune run` in the comment that begins the file, with the lines that go on with key=value."""
    lines = list(_header(path))
    start = next(index for index, line in enumerate(lines) if "proxytune run" in line)
    text = lines[start].partition("proxytune run")[2]
    for line in lines[start + 1 :]:
        if not re.match(r"\s+\S+=\S+", line):
            break
        text += line
    return shlex.split(text)


def _header(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        yield line.removeprefix("#")


def test_every_file_is_plain_yaml():
    for path in CONF.rglob("*.yaml"):
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict | None), path
