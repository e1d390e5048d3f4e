"""Several experts as one: task arithmetic (Ilharco et al. 2023, arXiv 2212.04089), as in Fan et al. 2024.

merged = antiexpert + scale * sum over experts of (expert - antiexpert)          for every tensor, in float32
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from proxytune.errors import UserError, unknown_name
from proxytune.models import FamilySpec, identity, load
from proxytune.models.loading.checks import check_sources
from proxytune.models.loading.tokenizers import load_tokenizers
from proxytune.training import folder as files
from proxytune.training.card import front_matter, origin, table
from proxytune.training.recipe import hash_of
from proxytune.validation import strict_dataclass

MergeMethod = Literal["task_arithmetic"]


def check_experts(experts: Sequence[str], known: Collection[str]) -> None:
    """Raises UserError for experts that cannot be merged; `known` are those of the family."""
    if not experts:
        raise UserError("experts=[] is empty: name at least one expert of the family")
    for name in experts:
        if name not in known:
            raise unknown_name("expert in experts", name, known)
        if experts.count(name) > 1:
            raise UserError(f"experts: {name!r} is named twice")


@strict_dataclass("merge")
class Merge:
    """What decides the merged weights; models are named by their identity."""

    kind: ClassVar = "merge"
    method: MergeMethod
    """task_arithmetic"""
    scale: float
    """a finite number, the multiple of the experts' changes"""
    antiexpert: str
    experts: Mapping[str, str]

    @property
    def facts(self) -> dict[str, Any]:
        return asdict(self)

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        phrases = {
            "method": f"method was {other['method']} and is {self.method}",
            "scale": f"scale was {other['scale']} and is {self.scale}",
            "antiexpert": "the antiexpert differs",
            "experts": "the experts differ",
        }
        return [phrase for name, phrase in phrases.items() if other[name] != self.facts[name]]


def merge(
    family: FamilySpec,
    experts: Sequence[str],
    scale: float,
    folder: Path,
    method: MergeMethod = "task_arithmetic",
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes the merged model as an ordinary Hugging Face folder; returns what its recipe.json holds, `provenance` with
    it.

    Adapters are merged into their module first. The model has the number type in which the antiexpert is loaded.
    A merge that is finished is not done again.
    Raises UserError as `check_experts` does, for a scale that is not finite, for members that differ in vocabulary or
    in the shape of a tensor, and for a `folder` that holds anything else.
    """
    check_experts(experts, family.experts)
    if family.antiexpert is None:
        raise UserError("the family has no antiexpert: merging starts from it")
    sources = {name: family.experts[name] for name in experts}
    check_sources({"antiexpert": family.antiexpert, **sources})
    identities = {name: identity(source) for name, source in sources.items()}
    work = Merge(method, scale, identity(family.antiexpert), identities)
    if (found := files.finished(folder, work)) is not None:
        return found
    # The antiexpert takes the base's place, so that vocabularies are compared with its own.
    model = _task_arithmetic(FamilySpec(family.antiexpert, family.antiexpert, family.experts), experts, scale)
    tokenizer = load_tokenizers({"antiexpert": family.antiexpert})["antiexpert"]
    card = {"recipe": hash_of(work.facts), **work.facts, **(provenance or {})}
    draft = folder / files.UNFINISHED / files.DRAFT
    with files.alone(folder), files.writing(folder):
        files.begin(folder, work)
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        files.finish(folder, draft, card, _readme(card, family.antiexpert.path))
    return card


def _task_arithmetic(family: FamilySpec, experts: Sequence[str], scale: float) -> PreTrainedModel:
    """The merged model, in the number type of the antiexpert."""
    model, dtype = _weights_of(family, "antiexpert")
    with torch.no_grad():
        start = dict(model.named_parameters())
        changes = {name: torch.zeros_like(weight) for name, weight in start.items()}
        for name in experts:
            _add_change(changes, start, _weights_of(family, f"expert:{name}")[0], name)
        for name, weight in start.items():
            weight.add_(changes[name], alpha=scale)
    return model.to(dtype)


def _weights_of(family: FamilySpec, role: str) -> tuple[Any, torch.dtype]:
    """The model of `role` in float32, an adapter merged into its weights; the number type that it was loaded in."""
    model: Any = load(family, [role])[role].model
    dtype = model.dtype
    model.float()
    return model.merge_and_unload() if isinstance(model, PeftModel) else model, dtype


def _add_change(
    total: dict[str, torch.Tensor], start: Mapping[str, torch.Tensor], expert: PreTrainedModel, name: str
) -> None:
    tuned = dict(expert.named_parameters())
    if lacking := sorted(start.keys() ^ tuned.keys()):
        raise UserError(f"expert {name!r} is not a tuned antiexpert: only one of the two has the tensor {lacking[0]!r}")
    for key, weight in start.items():
        if tuned[key].shape != weight.shape:
            shapes = f"{list(tuned[key].shape)}, the antiexpert's {list(weight.shape)}"
            raise UserError(f"expert {name!r} is not a tuned antiexpert: its {key!r} has the shape {shapes}")
        total[key] += tuned[key] - weight


def _readme(card: Mapping[str, Any], start: str) -> str:
    experts = ", ".join(f"{name} ({content})" for name, content in card["experts"].items())
    rows = {name: card[name] for name in ("recipe", "method", "scale", "antiexpert")} | {"experts": experts}
    rows |= origin(card)
    return front_matter("transformers", start) + (
        "\nSeveral tuned models as one, merged by proxytune: antiexpert + scale * sum of (expert - antiexpert).\n\n"
        f"{table(rows)}"
    )
