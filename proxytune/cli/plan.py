"""`proxytune plan`: how much memory a family takes, and which GPUs hold it, from its configurations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from omegaconf import DictConfig
from pydantic import Field

from proxytune import validation
from proxytune.cli import build, schema
from proxytune.cli.application import Command
from proxytune.errors import UserError
from proxytune.validation import FilePath, Strict

if TYPE_CHECKING:
    from proxytune.models import FamilySpec

GIB = 2**30
COUNTS = (1, 2, 4, 8, 16)
"""Numbers of GPUs that tensor parallelism may use."""
USED = 0.9
"""The share of a GPU's memory that vLLM uses unless it is told otherwise."""


class PlanConfig(Strict):
    """`conf/plan.yaml`."""

    models: dict[str, Any]
    """a file of conf/models, or a mapping with _target_"""
    tokens: int = Field(ge=1)
    """an integer from 1 (tokens that must fit into the KV caches at once)"""
    gpus: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    """a list of GPU sizes in GiB"""
    output: FilePath
    """a folder for the log"""
    allow_targets: list[str]
    """a list of packages besides proxytune that _target_ may name"""


def check(config: DictConfig) -> PlanConfig:
    """The settings; raises UserError for what is wrong by itself."""
    values = schema.plain_values(config)
    settings = validation.check(PlanConfig, values)
    build.check_targets(values["models"], "models", settings.allow_targets)
    return settings


def work(config: DictConfig, output_dir: Path) -> None:
    """Prints the memory of base, antiexpert and experts, and the fewest GPUs of each size that hold them."""
    settings = check(config)

    from proxytune.models import FamilySpec

    sizes = member_sizes(FamilySpec.of(build.build(settings.models)))
    width = max(map(len, (*sizes, "together")))
    print(f"{'member':<{width}}  {'weights':>11}  KV caches of 1,000 tokens")
    weights, cache = (sum(column) for column in zip(*sizes.values(), strict=True))
    for role, (own_weights, own_cache) in {**sizes, "together": (weights, cache)}.items():
        print(f"{role:<{width}}  {own_weights / GIB:>7.2f} GiB  {1000 * own_cache / GIB:.3f} GiB")
    print(
        f"\nThe fewest GPUs that hold the weights and KV caches of {settings.tokens:,} tokens, {USED:.0%} of them used:"
    )
    for size in settings.gpus:
        print(f"{size:g} GiB: {fitting(size, weights, cache, settings.tokens)}")


def member_sizes(family: FamilySpec) -> dict[str, tuple[int, int]]:
    """Bytes of the weights, and of the keys and values of one token, of the members that arms fuse; equal ones once."""
    from proxytune.models.api.endpoint import Endpoint
    from proxytune.models.loading.files import locate
    from proxytune.models.loading.sizes import cache_bytes, configured_bytes, weight_bytes

    sizes, counted = {}, set()
    for role, source in family.sources.items():
        if role.startswith("tuned:") or source in counted or isinstance(source, Endpoint):
            continue  # a model behind an endpoint takes no memory here
        counted.add(source)
        name = source.gguf_file or "config.json"
        if locate(source.path, name, source.revision) is None:  # else it is in the hub's cache now
            raise UserError(f"{role}: {source.path!r} has no {name}")
        weights = weight_bytes(source)
        sizes[role] = configured_bytes(source) if weights is None else weights, cache_bytes(source) or 0
    return sizes


def fitting(size: float, weights: int, cache: int, tokens: int) -> str:
    """How many GPUs of `size` GiB hold `weights` bytes and `cache` bytes for each of `tokens`, and what is left."""
    for count in COUNTS:
        room = USED * size * count * GIB - weights
        if room >= cache * tokens:
            return f"{count}, with room for {room / cache:,.0f} tokens"
    return f"more than {COUNTS[-1]}"


main = Command("plan", check, work).main
