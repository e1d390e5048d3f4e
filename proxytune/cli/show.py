"""`proxytune show`: what each member reads of an item, token by token, and what ends its answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from proxytune import validation
from proxytune.cli import build, run
from proxytune.cli.application import Command
from proxytune.cli.arguments import parse
from proxytune.engines.requests import GenerateRequest
from proxytune.errors import UserError
from proxytune.validation import Strict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from proxytune.experiment.lm_eval.reading import ItemRequest
    from proxytune.experiment.planning import Plan
    from proxytune.models import MemberFacts, Members

WIDTH = 110


class ShowConfig(Strict):
    """What `conf/show.yaml` adds to `conf/run.yaml`."""

    item: int = Field(ge=0)
    """an integer from 0, the number of an item in the task's data"""


def main(arguments: Sequence[str]) -> int:
    """`proxytune show [overrides] [Hydra flags]`; raises UserError for the user's mistakes."""
    if parse(arguments).multirun:
        raise UserError("proxytune show prints what one configuration asks: leave --multirun out")
    return Command("show", check, work).main(run.with_experiment(arguments))


def check(config: DictConfig) -> tuple[run.Experiment, int]:
    """Raises UserError for anything in `config` that is wrong by itself."""
    item = validation.check(ShowConfig, {"item": config.item}).item
    return run.prepare(OmegaConf.masked_copy(config, [str(key) for key in config if key != "item"])), item


def work(config: DictConfig, output_dir: Path) -> None:
    """Prints what the members that `config` names read."""
    (settings, tasks, arms, only, *_), item = check(config)

    from proxytune.experiment.lm_eval.reading import requests_of
    from proxytune.experiment.planning import Items, plans_unchecked
    from proxytune.models import readers

    family = build.build(settings.models)
    items = Items(settings.task.data_dir, settings.limit, settings.num_fewshot, settings.seed)
    for plan in plans_unchecked(family, tasks, arms, only, items):
        ensemble = readers(family, plan.roles)
        asked = requests_of(ensemble, plan, items, item)
        print(*_lines(ensemble, plan, item, asked), "", sep="\n")


def _lines(ensemble: Members[MemberFacts], plan: Plan, item: int, asked: Sequence[ItemRequest]) -> Iterator[str]:
    generates = isinstance(asked[0].request, GenerateRequest)
    what = "an answer is generated" if generates else f"{len(asked)} continuations are scored"
    yield f"{plan.task}, item {item}: {what} (metric {plan.info.metric})"
    shown = None
    for number, one in enumerate(asked):
        request = one.request
        if request.prompt != shown:
            shown = request.prompt
            yield from _prompts(ensemble, one)
        if isinstance(request, GenerateRequest):
            yield from _ends(ensemble, plan, request)
            yield _decoding(request) + (f", {one.times} times" if one.times > 1 else "")
        else:
            yield from _tokens(f"continuation {number}", request.continuation, ensemble.tokenizer)


def _prompts(ensemble: Members[MemberFacts], asked: ItemRequest) -> Iterator[str]:
    """What each member reads before the answer; members that read the same together."""
    prompt = asked.request.prompt
    read = {role: _known(member, prompt.of(role)) for role, member in ensemble.members.items()}
    for tokens, roles in _alike(read).items():
        own = ensemble[roles[0]].tokenizer if roles[0] in prompt.own else None
        yield from _tokens(", ".join(roles), tokens, own or ensemble.tokenizer)
    if asked.cut:
        yield f"  {asked.cut} tokens of the prompt's beginning do not fit into the smallest window and are left out"


def _known(member: MemberFacts, tokens: Sequence[int]) -> tuple[int, ...]:
    """`tokens` with the unknown token in place of those that the member does not have."""
    return tuple(member.unknown if token in member.missing else token for token in tokens)


def _ends(ensemble: Members[MemberFacts], plan: Plan, request: GenerateRequest) -> Iterator[str]:
    """What ends the answer."""
    yield "end tokens" + ("" if ensemble.end_tokens is None else " (models.end_tokens)")
    members = {role: ensemble.ends([role]) for role in ensemble.members}
    arms = {name: ensemble.ends(arm.roles) for name, arm in plan.arms.present.items()}
    for what, ends in (("", members), ("arms ", arms)):
        for tokens, names in _alike(ends).items():
            yield f"  {what}{', '.join(names)}: {', '.join(pieces(tokens, ensemble.tokenizer)) or 'none'}"
    yield f"stop strings: {', '.join(map(repr, request.until)) or 'none'}"
    if request.banned:
        yield f"tokens it never has: {', '.join(pieces(request.banned, ensemble.tokenizer))}"
    yield f"at most {request.max_new_tokens} tokens"
    for role, member in ensemble.members.items():
        if member.ignored:
            settings = ", ".join(f"{name}={value}" for name, value in member.ignored.items())
            yield f"not applied, of the generation_config of {role}: {settings}"


def _decoding(request: GenerateRequest) -> str:
    if request.temperature == 0:
        return "greedy decoding"
    return f"sampled with temperature {request.temperature:g}, top_p {request.top_p:g} and noise of its own per item"


def _alike(tokens_of: Mapping[str, tuple[int, ...]]) -> dict[tuple[int, ...], list[str]]:
    """The names that have the same tokens, by these."""
    names: dict[tuple[int, ...], list[str]] = {}
    for name, tokens in tokens_of.items():
        names.setdefault(tokens, []).append(name)
    return names


def _tokens(what: str, tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """A heading, and lines of tokens that begin with the position of their first."""
    yield f"{what}: {len(tokens)} tokens"
    line, first = "", 0
    for position, piece in enumerate(pieces(tokens, tokenizer)):
        if line and len(line) + len(piece) > WIDTH:
            yield f"  {first:>5}{line}"
            line, first = "", position
        line += f"  {piece}"
    if line:
        yield f"  {first:>5}{line}"


def pieces(tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Each token as its id and its piece: in quotes, what cannot be printed escaped; bare if it is a special token."""
    added = tokenizer.added_tokens_decoder
    special = {token for token in tokens if token in added and added[token].special} | set(tokenizer.all_special_ids)
    found = tokenizer.convert_ids_to_tokens(list(tokens))
    return [f"{token} {_piece(piece, token in special)}" for token, piece in zip(tokens, found, strict=True)]


def _piece(piece: str | None, special: bool) -> str:
    if piece is None:
        return "(no token)"
    return piece if special and piece.isprintable() else repr(piece)
