"""How a run's settings differ from those of the shipped experiment that it names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from proxytune.folders import config_dir

Path = tuple[str, ...]

_SHARED: tuple[Path, ...] = (("task", "style"), ("num_fewshot",), ("limit",), ("seed",))
"""Settings that all arms share."""
_DEFAULTS = {"dtype": "auto", "trust_remote_code": False}
"""Of a model's source; the other keys' default is null."""
_PLACEMENT = {"device_map", "max_memory", "api", "concurrency", "timeout", "retries"}
"""Keys of a source that say where a model runs, not which it is."""


@cache
def shipped(experiment: str) -> dict[str, Any]:
    """The configuration of conf/experiment/<experiment>.yaml; references to the environment stay as they are."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = OmegaConf.to_container(compose("run", [f"experiment={experiment}"]), resolve=False)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def differences(run: Mapping[str, Any], paper: Mapping[str, Any], arm: str, roles: Sequence[str]) -> list[str]:
    """Each setting of `arm` that `run` has otherwise than `paper`, both full configurations: "key=ours, not theirs".

    Compared are style, examples, limit and seed, the arm itself where the paper has it, and the models of its `roles`
    (where they are unknown, all that the paper has).
    """
    pairs = [(path, _at(run, path), _at(paper, path)) for path in _SHARED]
    if arm in paper["arms"]:
        pairs += _leaves(("arms", arm), _at(run, ("arms", arm)), paper["arms"][arm])
    for path in map(_path, roles or _roles(paper["models"])):
        pairs += _leaves(path, _source(_at(run, path)), _source(_at(paper, path)))
    differing = [
        (".".join(path), _said(ours), _said(theirs)) for path, ours, theirs in pairs if not _same(ours, theirs)
    ]
    return [f"{key}={ours}, not {theirs}" for key, ours, theirs in differing]


def _path(role: str) -> Path:
    """Of "expert:gsm8k": models, experts, gsm8k."""
    kind, _, name = role.partition(":")
    return ("models", "experts" if kind == "expert" else kind, name) if name else ("models", role)


def _roles(models: Mapping[str, Any]) -> list[str]:
    named = [f"{kind}:{name}" for kind, key in (("expert", "experts"), ("tuned", "tuned")) for name in models[key]]
    return ["base", "antiexpert", *named]


def _at(config: Any, path: Path) -> Any:
    for part in path:
        config = config.get(part) if isinstance(config, Mapping) else None
    return config


def _source(node: Any) -> Any:
    """A source with all its keys, so that an absent key equals its default."""
    node = {"path": node} if isinstance(node, str) else node
    if not isinstance(node, Mapping):
        return node
    return _DEFAULTS | {key: value for key, value in node.items() if key not in _PLACEMENT}


def _leaves(path: Path, ours: Any, theirs: Any) -> Iterator[tuple[Path, Any, Any]]:
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for name in dict.fromkeys([*theirs, *ours]):
            yield from _leaves((*path, str(name)), ours.get(name), theirs.get(name))
    else:
        yield path, ours, theirs


def _same(ours: Any, theirs: Any) -> bool:
    """A text that the paper's configuration takes from the environment may be any."""
    if isinstance(theirs, str) and "${" in theirs:
        return re.fullmatch(re.sub(r"\\\$\\\{.*?\\\}", ".*", re.escape(theirs)), str(ours)) is not None
    return bool(ours == theirs)


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("path", dict(value)))
    return "null" if value is None else str(value)
